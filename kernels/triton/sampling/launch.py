"""The launch table's rows for the sampling kernels; none of them decides a bit of a token (launch.py: the frame)."""

from dataclasses import replace

import torch

from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import Row, power_of_two

NO_FUSION = {"enable_fp_fusion": False}  # a fused multiply-add rounds once where the reference rounds twice
GROUPS = 2048  # of a row at most: one program holds their maxima


def scan(device: torch.device, vocab_size: int) -> Row:
    """A program reads 2048 logits, 16 a thread. In the interpreter, where a step takes the same time for more, tiles
    of several rows."""
    group = max(32, power_of_two(vocab_size) // GROUPS)
    if launch.arch_of(device) != "interpreter":
        return _exact(4, GROUP=group, TILE=2048, ROWS=1)
    tile = max(group, min(2048, power_of_two(vocab_size)))
    return _exact(4, GROUP=group, TILE=tile, ROWS=16384 // tile)


def choose(device: torch.device, vocab_size: int) -> Row:
    """A program keeps 2048 ids in registers, 8 a thread; two programs fill a multiprocessor's registers."""
    arch = launch.arch_of(device)
    row = _exact(8, CHUNK=min(2048, max(32, power_of_two(vocab_size))) if arch == "interpreter" else 2048)
    # Told how many registers it has, the compiler no longer spills some of them to have more programs resident.
    return replace(row, options={**NO_FUSION, "maxnreg": 128}) if arch.startswith("sm_") else row


def penalties(device: torch.device, vocab_size: int) -> Row:
    """A program changes 1024 logits of one row, 8 a thread."""
    return _exact(4, TILE=min(1024, power_of_two(vocab_size)))


def bias() -> Row:
    return _exact(1, TILE=128)


def lm_head(device: torch.device, dtype: torch.dtype, num_rows: int, vocab_size: int) -> Row:
    """The row of `linear` for as many tokens, up to its widest thin tile: beyond, a program's noise would spill."""
    row = launch.linear(device, dtype, min(num_rows, launch.THIN_ROWS), vocab_size)
    return replace(row, options={**row.options, **NO_FUSION})


def best() -> Row:
    return _exact(4, TILE=1024)


def _exact(num_warps: int, **tiles: int) -> Row:
    return Row(num_warps, 1, tiles, NO_FUSION)
