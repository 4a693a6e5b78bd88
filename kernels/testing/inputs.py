"""Inputs that catch a bad kernel: ragged, strided, paged in shuffled blocks, with NaN wherever nothing lives."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where inputs lie unless told otherwise
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Heads = tuple[int, int, int]  # num_heads, num_kv_heads, head_dim


def integers(values: Iterable[int], device: torch.device = DEVICE) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)


def cu_seqlens(lengths: Iterable[int], device: torch.device = DEVICE) -> Tensor:
    return integers([0, *accumulate(lengths)], device)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0, device: torch.device = DEVICE) -> Tensor:
    """Normal values, the same for every dtype and device but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def strided(tensor: Tensor) -> Tensor:
    """The same values as a view of wider rows whose rest is NaN."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 8), torch.nan, dtype=tensor.dtype, device=tensor.device)
    wide[..., : tensor.shape[-1]] = tensor
    return wide[..., : tensor.shape[-1]]


def fused_qkv(
    num_tokens: int, heads: Heads, dtype: torch.dtype, padding: int = 0, seed: int = 0, device: torch.device = DEVICE
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as strided views of one projection, with NaN in `padding` rows at the end."""
    num_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(seed)
    fused = torch.randn((num_tokens + padding, num_heads + 2 * num_kv_heads, head_dim), generator=generator)
    fused[num_tokens:] = torch.nan
    q, k, v = fused.to(device, dtype).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return q, k, v


def far_rows(num_tensors: int, num_rows: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors `[num_rows, 1, head_dim]` whose rows span more than 2^31 elements, with untouched memory between them."""
    stride = (2**31 + 2**20) // (num_rows - 1) // 16 * 16
    memory = torch.ones((), dtype=dtype, device=DEVICE).new_empty(stride * num_rows)
    shape, strides = (num_rows, 1, head_dim), (stride, head_dim, 1)
    return tuple(memory[i * head_dim :].as_strided(shape, strides) for i in range(num_tensors))


def paged(
    k: Tensor, v: Tensor, lengths: list[int], block_size: int, seed: int = 0, fill: float = torch.nan,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """k and v of sequences lying end to end as (k_cache, v_cache, block_table), in shuffled blocks of one pool.

    Every slot that no token owns holds `fill`: the ends of last blocks, two spare blocks, and a block of memory on each
    side of the pool. Both caches are contiguous, as those of a model's layers are, unless blocks of k and of v lie
    interleaved. A row of the table ends in -1; the table is a view of a wider one, whose other entries name a
    spare block.
    """
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 2
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    size = (num_blocks + 2, 2) if interleaved else (2, num_blocks + 2)
    pool = torch.full((*size, block_size, *k.shape[1:]), fill, dtype=k.dtype, device=k.device)
    k_cache, v_cache = pool.unbind(1 if interleaved else 0)
    k_cache, v_cache = k_cache[1:-1], v_cache[1:-1]
    table = torch.full((len(lengths), max([*counts, 0]) + 5), order.pop(), dtype=torch.int32)
    table[:, :-4] = -1
    start = 0
    for seq, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for column in range(count):
            first, block = start + column * block_size, order.pop()
            last = min(first + block_size, start + length)
            table[seq, column] = block
            k_cache[block, : last - first] = k[first:last]
            v_cache[block, : last - first] = v[first:last]
        start += length
    return k_cache, v_cache, table.to(k.device)[:, :-4]


def prefill_args(
    contexts: list[int], queries: list[int], heads: Heads, dtype: torch.dtype, block_size: int,
    padding: int = 5, device: torch.device = DEVICE,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments for the newest `queries` tokens of sequences of `contexts` tokens, rows of NaN after them."""
    return _paged_args(contexts, queries, max([2, *queries]), heads, dtype, block_size, padding, device)


def decode_args(
    contexts: list[int], heads: Heads, dtype: torch.dtype, block_size: int, padding: int = 5,
    device: torch.device = DEVICE,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments for one new token of each sequence."""
    return _paged_args(contexts, [1] * len(contexts), 1, heads, dtype, block_size, padding, device)


def _paged_args(
    contexts: list[int], queries: list[int], longest: int, heads: Heads, dtype: torch.dtype, block_size: int,
    padding: int, device: torch.device,
) -> tuple[Any, ...]:  # fmt: skip
    _, k, v = fused_qkv(sum(contexts), heads, dtype, device=device)
    q, _, _ = fused_qkv(sum(queries), heads, dtype, padding=padding, seed=1, device=device)
    indices = (integers(contexts, device), cu_seqlens(queries, device), longest, heads[2] ** -0.5)
    return (q, *paged(k, v, contexts, block_size), *indices)
