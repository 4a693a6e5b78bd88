"""Attention on a CPU, over a step's own tokens or over the paged cache.

A sequence with one query is decoded by our own loops (cpu_decode.py). One with more goes through PyTorch's fused
kernel, which reads the cache in place where the sequence's blocks lie in a row.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu.paged_decode import decode_attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = _attend(q[a:b], k[:, :, a:b], v[:, :, a:b], scale)
    return o


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context: see the reference."""
    o = (torch.empty_like if max_seqlen_q == 1 else torch.zeros_like)(q, memory_format=torch.contiguous_format)
    decode_attention(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, scale, o)
    if max_seqlen_q > 1:
        bounds, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
        for (first, last), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
            seen = min(last - first, length)  # queries before these see nothing
            if last - first > 1 and seen:
                k, v = (_context(cache, blocks, length) for cache in (k_cache, v_cache))
                o[last - seen : last] = _attend(q[last - seen : last], k, v, scale)
    return o


def _context(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """Keys or values of a sequence, `[1, num_kv_heads, length, head_dim]`; a view where its blocks lie in a row."""
    block_size, (_, slot_stride, head_stride, _) = cache.shape[1], cache.stride()
    blocks = blocks[: -(-length // block_size)]
    numbers = blocks.tolist()
    offset = cache.storage_offset() + numbers[0] * block_size * slot_stride
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        cache, offset = cache.index_select(0, blocks), 0
    size = 1, cache.shape[2], length, cache.shape[3]
    return cache.as_strided(size, (0, head_stride, slot_stride, 1), offset)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence: q `[queries, num_heads, head_dim]`; k, v `[1, num_kv_heads, keys, head_dim]`, keys >= queries."""
    group, num_queries, num_keys = q.shape[1] // k.shape[1], len(q), k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    is_chunk = 1 < num_queries < num_keys
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries) if is_chunk else None
    rows = q.transpose(0, 1).unsqueeze(0)
    is_causal = num_queries == num_keys
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return o.squeeze(0).transpose(0, 1)
