"""Formats of weights that a run may have beside dense ones: what each side is told, and how many bytes a weight has."""

from functools import cache
from pathlib import Path

import gguf

from octavo.bench.measuring.roofline import step_weights
from octavo.gpt.models.config import ModelConfig
from octavo.kernels import weights
from octavo.kernels.weights import BLOCK_FORMATS

# LLM quantises dense weights to these while it loads. Bytes of a weight, its share of a block's scales included.
QUANTISED = {name: BLOCK_FORMATS[name].bytes / BLOCK_FORMATS[name].values for name in weights.FORMATS}
MADE = ("q4_k_m", "q5_k_m", "q6_k")  # LLM reads these from a file that llama.cpp makes of the model
FILE = "file"  # the blocks of the model's own GGUF file
DENSE = "dense"  # LLM's word for weights in a dtype, whatever the file holds
FORMATS = (FILE, *QUANTISED, *MADE)
SAME_SIZE = {"int8": "q8_0"}  # of older results of ours, llama.cpp's format that stood beside it

UNREAD = ("position_embd.weight",)  # a table of which a step reads one row


@cache
def weight_bytes(path: Path, config: ModelConfig) -> float:
    """The mean size of a weight that a step reads from a GGUF file."""
    read = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name not in UNREAD]
    if not config.tied_embeddings:
        read = [tensor for tensor in read if tensor.name != "token_embd.weight"]
    return sum(int(tensor.n_bytes) for tensor in read) / step_weights(config)
