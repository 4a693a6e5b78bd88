"""Inputs and memory that catch a bad kernel: poisoned with NaN, guarded, ragged, paged with holes."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD, SENTINEL = 256, 77  # elements on each side of an allocation, and their value


def poison(dtype: torch.dtype) -> float:
    """What uninitialised memory holds in a test: NaN, or the largest integer."""
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Inside, torch.empty and empty_like return poison between guards; on leaving, no guard may have been written."""
    buffers: list[Tensor] = []

    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        shape = torch.Size(size if isinstance(size[0], int) else size[0])
        dtype = dtype or torch.get_default_dtype()
        buffer = torch.full((shape.numel() + 2 * GUARD,), SENTINEL, dtype=dtype, device=device)
        buffer[GUARD : buffer.numel() - GUARD] = poison(dtype)
        buffers.append(buffer)
        return buffer[GUARD : buffer.numel() - GUARD].view(shape)

    def empty_like(other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return empty(other.shape, dtype=dtype or other.dtype, device=other.device)

    with mock.patch.object(torch, "empty", empty), mock.patch.object(torch, "empty_like", empty_like):
        yield
    for buffer in buffers:
        assert bool((buffer[:GUARD] == SENTINEL).all()), "written before an allocation"
        assert bool((buffer[buffer.numel() - GUARD :] == SENTINEL).all()), "written after an allocation"


def cu_seqlens(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def fused_qkv(
    num_tokens: int, heads: tuple[int, int, int], dtype: torch.dtype, padding: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as strided views of one projection, with NaN in `padding` rows at the end.

    heads is (num_heads, num_kv_heads, head_dim).
    """
    num_heads, num_kv_heads, head_dim = heads
    shape = (num_tokens + padding, num_heads + 2 * num_kv_heads, head_dim)
    fused = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    fused[num_tokens:] = torch.nan
    q, k, v = fused.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return q, k, v


def paged(
    k: Tensor, v: Tensor, lengths: list[int], block_size: int, spare_columns: int = 1, fill: float = torch.nan
) -> tuple[Tensor, Tensor, Tensor]:
    """k and v of sequences lying end to end as (k_cache, v_cache, block_table), in shuffled blocks of one pool.

    Every slot that no token owns holds `fill`: the ends of last blocks, spare blocks, and memory around the pool. Rows
    of the table end in -1 and are a view of a wider table, whose further entries name a spare block.
    """
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 2
    pool = torch.full((num_blocks + 2, 2, block_size, *k.shape[1:]), fill, dtype=k.dtype, device=k.device)[1:-1]
    order = torch.randperm(num_blocks).tolist()
    width = max([*counts, 0]) + spare_columns
    table = torch.full((len(lengths), width + 4), order.pop(), dtype=torch.int32, device=k.device)
    table[:, :width] = -1
    start = 0
    for seq, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for column in range(count):
            first, block = start + column * block_size, order.pop()
            last = min(first + block_size, start + length)
            table[seq, column] = block
            pool[block, 0, : last - first] = k[first:last]
            pool[block, 1, : last - first] = v[first:last]
        start += length
    return pool[:, 0], pool[:, 1], table[:, :width]
