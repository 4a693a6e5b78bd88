"""What every test gets: Triton's interpreter where there is no GPU, and memory that is poisoned before it is written."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any is imported

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
