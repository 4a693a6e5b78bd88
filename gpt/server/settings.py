"""Settings of a server: where it listens, who may ask, and how much at once. Each is a flag of `octavo serve`."""

from dataclasses import dataclass, field
from typing import Any


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Where the server listens and what one request may ask for; sizes in bytes, times in seconds."""

    host: str = _flag("127.0.0.1", "the address to listen at; 0.0.0.0 for all of this machine")
    port: int = _flag(8000, "the port to listen at; 0 for a free one")
    api_key: tuple[str, ...] = _flag((), "a key that clients must give; repeatable (or OCTAVO_API_KEY)")
    served_model_name: str | None = _flag(None, "what the model is called in the API")
    cors_origin: tuple[str, ...] = _flag((), "an origin whose pages may ask this server; repeatable")
    max_body: int = _flag(4 * 2**20, "most bytes of a request")
    max_prompt_tokens: int | None = _flag(None, "most tokens of a prompt (as many as the context holds)")
    max_prompts: int = _flag(64, "most prompts of a request")
    max_n: int = _flag(16, "most completions of a prompt")
    max_stop: int = _flag(16, "most stop strings of a request")
    max_logprobs: int = _flag(20, "most log-probabilities of a token")
    quiet: bool = _flag(False, "no line for each call on standard error")
    shutdown_timeout: float = _flag(30.0, "seconds that running requests get to end in, when the server is stopped")
