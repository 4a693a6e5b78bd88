"""Attention over the paged cache on a CPU.

A sequence with one query is decoded by a kernel of our own (paged_decode.py). One with more goes through PyTorch's
fused kernel, which reads the cache in place where the sequence's blocks lie in a row.
"""

from itertools import pairwise

import torch
from torch import Tensor

from octavo.kernels.cpu.attention import attend
from octavo.kernels.cpu.paged_decode import decode_attention


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
    """Each sequence's newest tokens attend to its cached context: see the reference."""
    o = (torch.empty_like if max_seqlen_q == 1 else torch.zeros_like)(q, memory_format=torch.contiguous_format)
    decode_attention(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, scale, window, softcap, sinks, o)
    if max_seqlen_q > 1:
        bounds, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
        for (first, last), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
            seen = min(last - first, length)  # queries before these see nothing
            if last - first > 1 and seen:
                start = max(0, length - seen + 1 - window) // k_cache.shape[1] if window else 0
                k, v = (
                    _context(cache, blocks[start:], length - start * k_cache.shape[1]) for cache in (k_cache, v_cache)
                )
                o[last - seen : last] = attend(q[last - seen : last], k, v, scale, window, softcap, sinks)
    return o


def _context(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """Keys or values of a sequence, `[length, num_kv_heads, head_dim]`; a view where its blocks lie in a row."""
    block_size, (_, slot_stride, head_stride, _) = cache.shape[1], cache.stride()
    blocks = blocks[: -(-length // block_size)]
    numbers = blocks.tolist()
    offset = cache.storage_offset() + numbers[0] * block_size * slot_stride
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        cache, offset = cache.index_select(0, blocks), 0
    return cache.as_strided((length, *cache.shape[2:]), (slot_stride, head_stride, 1), offset)
