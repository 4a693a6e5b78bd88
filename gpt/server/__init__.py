"""An OpenAI-compatible HTTP server over `AsyncLLM`: `octavo serve`. Needs the extra `octavo[serve]`."""
