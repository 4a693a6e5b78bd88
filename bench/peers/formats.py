"""Formats of weights that a run may have beside dense ones: what each side is told, and how many bytes a weight has."""

from functools import cache
from pathlib import Path

import gguf

from octavo.bench.measuring.roofline import step_weights
from octavo.gpt.models.config import ModelConfig

# LLM quantises dense weights to these while it loads. Bytes of a weight, its share of a block's scales included.
QUANTISED = {"int8": 1.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32}
MADE = ("q4_k_m", "q5_k_m", "q6_k")  # LLM reads these from a file that llama.cpp makes of the model
FILE = "file"  # the blocks of the model's own GGUF file
FORMATS = (FILE, *QUANTISED, *MADE)
SAME_SIZE = {"int8": "q8_0"}  # of ours, llama.cpp's that stands beside it where it has another name

UNREAD = ("position_embd.weight",)  # a table of which a step reads one row


@cache
def weight_bytes(path: Path, config: ModelConfig) -> float:
    """The mean size of a weight that a step reads from a GGUF file."""
    read = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name not in UNREAD]
    if not config.tied_embeddings:
        read = [tensor for tensor in read if tensor.name != "token_embd.weight"]
    return sum(int(tensor.n_bytes) for tensor in read) / step_weights(config)
