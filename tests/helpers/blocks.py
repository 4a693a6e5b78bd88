"""Weights in the blocks of a GGUF file, for every format."""

import torch

from octavo.kernels.weights import BLOCK_FORMATS, BlockWeight, Weight, quantise

SCALES = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}  # bytes of a block where a float16 begins


def random_blocks(out_features: int, in_features: int, format: str) -> Weight:
    """A weight of normal numbers, or of random bits with small scales where the package cannot quantise.

    in_features grows to whole blocks.
    """
    values, size, from_dense = BLOCK_FORMATS[format]
    blocks = -(-in_features // values)
    if from_dense:
        return quantise(torch.randn(out_features, values * blocks), format)
    raw = torch.randint(0, 256, (out_features, blocks, size), dtype=torch.uint8)
    for place in SCALES[format]:
        raw[..., place : place + 2] = (0.01 * torch.randn(out_features, blocks, 1)).half().view(torch.uint8)
    return BlockWeight(raw.flatten(1), format)
