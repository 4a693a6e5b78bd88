"""The launch table's rows for the sampling kernels; none of them decides a bit of a token (launch.py: the frame)."""

import torch

from octavo.kernels import launch
from octavo.kernels.launch import Row, power_of_two

GROUPS = 2048  # of a row at most: one program holds their maxima


def scan(device: torch.device, vocab_size: int) -> Row:
    """A program reads 2048 logits, 16 a thread: one tile of one row, or several rows of a small vocabulary."""
    group = max(32, power_of_two(vocab_size) // GROUPS)
    tile = max(group, min(2048, power_of_two(vocab_size)))
    # A step of the interpreter takes the same time for more rows.
    lanes = 16384 if launch.arch_of(device) == "interpreter" else 2048
    return _exact(4, GROUP=group, TILE=tile, ROWS=lanes // tile)


def choose(device: torch.device, vocab_size: int) -> Row:
    """A program keeps 2048 ids in registers, 8 a thread, of one row or of as many as its scan had."""
    return _exact(8, CHUNK=min(2048, max(32, power_of_two(vocab_size))))


def penalties(device: torch.device, vocab_size: int) -> Row:
    """A program changes 1024 logits of one row, 8 a thread."""
    return _exact(4, TILE=min(1024, power_of_two(vocab_size)))


def bias() -> Row:
    return _exact(1, TILE=128)


def _exact(num_warps: int, **tiles: int) -> Row:
    """No fused multiply-add: it would round once where the reference rounds twice."""
    return Row(num_warps, 1, tiles, {"enable_fp_fusion": False})
