"""Inputs that catch a bad kernel: ragged, strided, paged in shuffled blocks, with NaN wherever nothing lives."""

from itertools import accumulate

import torch
from torch import Tensor

from guarded import DEVICE


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def cu_seqlens(lengths: list[int]) -> Tensor:
    return integers([0, *accumulate(lengths)])


def fused_qkv(
    num_tokens: int, heads: tuple[int, int, int], dtype: torch.dtype, padding: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as strided views of one projection, with NaN in `padding` rows at the end.

    heads is (num_heads, num_kv_heads, head_dim).
    """
    num_heads, num_kv_heads, head_dim = heads
    generator = torch.Generator().manual_seed(seed)
    fused = torch.randn((num_tokens + padding, num_heads + 2 * num_kv_heads, head_dim), generator=generator)
    fused[num_tokens:] = torch.nan
    q, k, v = fused.to(DEVICE, dtype).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return q, k, v


def far_rows(num_tensors: int, num_rows: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors `[num_rows, 1, head_dim]` whose rows span more than 2^31 elements, with untouched memory between them."""
    stride = (2**31 + 2**20) // (num_rows - 1) // 16 * 16
    memory = torch.ones((), dtype=dtype, device=DEVICE).new_empty(stride * num_rows)
    shape, strides = (num_rows, 1, head_dim), (stride, head_dim, 1)
    return tuple(memory[i * head_dim :].as_strided(shape, strides) for i in range(num_tensors))


def paged(
    k: Tensor, v: Tensor, lengths: list[int], block_size: int, seed: int = 0, fill: float = torch.nan
) -> tuple[Tensor, Tensor, Tensor]:
    """k and v of sequences lying end to end as (k_cache, v_cache, block_table), in shuffled blocks of one pool.

    Every slot that no token owns holds `fill`: the ends of last blocks, two spare blocks, and a block of memory on each
    side of the pool. A row of the table ends in -1; the table is a view of a wider one, whose other entries name a
    spare block.
    """
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 2
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    pool = torch.full((num_blocks + 2, 2, block_size, *k.shape[1:]), fill, dtype=k.dtype)[1:-1]
    table = torch.full((len(lengths), max([*counts, 0]) + 5), order.pop(), dtype=torch.int32)
    table[:, :-4] = -1
    start = 0
    for seq, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for column in range(count):
            first, block = start + column * block_size, order.pop()
            last = min(first + block_size, start + length)
            table[seq, column] = block
            pool[block, 0, : last - first] = k[first:last]
            pool[block, 1, : last - first] = v[first:last]
        start += length
    pool, table = pool.to(DEVICE), table.to(DEVICE)
    return pool[:, 0], pool[:, 1], table[:, :-4]


def prefill_args(
    contexts: list[int], queries: list[int], heads: tuple[int, int, int], dtype: torch.dtype, block_size: int
) -> tuple[object, ...]:
    """Arguments for the newest `queries` tokens of sequences of `contexts` tokens, five rows of NaN after them."""
    _, k, v = fused_qkv(sum(contexts), heads, dtype)
    q, _, _ = fused_qkv(sum(queries), heads, dtype, padding=5, seed=1)
    indices = (integers(contexts), cu_seqlens(queries), max([2, *queries]), heads[2] ** -0.5)
    return (q, *paged(k, v, contexts, block_size), *indices)


def decode_args(
    contexts: list[int], heads: tuple[int, int, int], dtype: torch.dtype, block_size: int, padding: int = 5
) -> tuple[object, ...]:
    """Arguments for one new token of each sequence."""
    _, k, v = fused_qkv(sum(contexts), heads, dtype)
    q, _, _ = fused_qkv(len(contexts), heads, dtype, padding=padding, seed=1)
    indices = (integers(contexts), cu_seqlens([1] * len(contexts)), 1, heads[2] ** -0.5)
    return (q, *paged(k, v, contexts, block_size), *indices)
