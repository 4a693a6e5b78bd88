"""Attention on a CPU: over a step's own tokens, and over the paged cache. One kernel does both, to the same bits."""

from functools import cache

import torch
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.attention.arithmetic import HEADER, STORED, cap, fold, product, soften
from octavo.kernels.cpu.attention.kernel import attend, merge
from octavo.kernels.cpu.attention.piece import SPLIT
from octavo.kernels.cpu.attention.routines import addresses
from octavo.kernels.cpu.vector_ir import LANES


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    k, v, bounds = nk.rows_of_heads(k), nk.rows_of_heads(v), cu_seqlens.int().contiguous()
    lengths = bounds.diff()
    places = bounds, 0, 1, max_seqlen  # of the cache: no table, no blocks
    return _attend(q, k, v, *places, lengths, bounds, scale, window, softcap, sinks)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context: see the reference. Caches must be contiguous."""
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("k_cache and v_cache must be contiguous")
    block_size, max_blocks = k_cache.shape[1], block_table.shape[1]
    k, v = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    table, lengths, bounds = (x.int().contiguous() for x in (block_table, context_lens, cu_seqlens_q))
    places = table, block_size, max_blocks, max_blocks * block_size
    return _attend(q, k, v, *places, lengths, bounds, scale, window, softcap, sinks)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, block_size: int, max_blocks: int, max_len: int,
    lengths: Tensor, bounds: Tensor, scale: float, window: int, softcap: float, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """k, v `[num_slots, num_kv_heads, head_dim]`; block_size 0: no table; max_len bounds the longest context."""
    q, dtype = nk.rows_of_heads(q), nk.common_dtype(q, k, v)
    (num_tokens, num_heads, head_dim), num_kv_heads, num_seqs = q.shape, k.shape[1], len(lengths)
    group, max_splits, width = num_heads // num_kv_heads, -(-max_len // SPLIT), HEADER + -(-head_dim // LANES) * LANES
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    partial = torch.empty(num_seqs * num_heads * max_splits * width, dtype=torch.float32, device=q.device)
    given = partial if sinks is None else sinks.contiguous()  # without sinks the kernels never read it
    shape = num_seqs, num_kv_heads, group, head_dim, window, max_splits, sinks is not None
    size, routines = q.element_size(), _routines(dtype)
    strides = [size * x.stride(0) for x in (q, k, v)]
    where = [x.data_ptr() for x in (q, k, v, out)]
    work = num_tokens * num_kv_heads * head_dim * max_splits * SPLIT
    attend(torch.float32, work, partial, given, table, lengths, bounds, *where, *shape, size, *strides, block_size,
           max_blocks, *routines, scale, softcap)  # fmt: skip
    merge(torch.float32, q.numel(), partial, given, lengths, bounds, where[3], *shape, size, num_tokens, *routines)
    return out


@cache
def _routines(dtype: torch.dtype) -> list[int]:
    """The addresses of `piece.Routines`."""
    found, name = addresses(), str(dtype).removeprefix("torch.")
    if name not in STORED:
        raise RuntimeError(f"this CPU has no instructions for {name}: choose dtype float32 or bfloat16")
    return [found[each] for each in (product, cap, soften, fold, *STORED[name])]
