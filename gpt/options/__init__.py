"""What callers may say: checks of values, names of dtypes and devices, and vLLM's arguments that change nothing."""
