"""Attention on a CPU, over a step's own tokens or over the paged cache.

Decode is one gather and two batched products for all sequences: keys and values are collected head by head, so the
products read them as they lie. Sequences are padded to the longest among those of about the same length, so at most
half is padding; a padded place holds the sequence's first key, which the mask then removes, so that what lies in an
unused slot is never read. Prefill is PyTorch's fused kernel, one call a sequence.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = _attend(q[a:b], k[a:b], v[a:b], scale)
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
    num_seqs, lengths = len(context_lens), context_lens.tolist()
    is_one_each = max_seqlen_q == 1 and len(q) == num_seqs == int(cu_seqlens_q[-1])
    # One sequence is best left to the fused kernel, unless it would multiply single bfloat16 rows.
    is_slow_alone = q.dtype != torch.float32 and q.shape[1] == k_cache.shape[2]
    if is_one_each and (num_seqs > 1 or is_slow_alone):
        return _decode(q, k_cache, v_cache, block_table, context_lens, lengths, scale)
    bounds = cu_seqlens_q.tolist()
    pieces = []
    for (a, b), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        seen = min(b - a, length)  # queries before the first key see nothing
        if seen < b - a:
            pieces.append(torch.zeros_like(q[: b - a - seen]))
        if seen:
            used = blocks[: -(-length // k_cache.shape[1])]
            k, v = _context((k_cache, v_cache), used, length)
            pieces.append(_attend(q[b - seen : b], k, v, scale))
    if bounds[-1] < len(q):
        pieces.append(torch.zeros_like(q[bounds[-1] :]))
    return pieces[0] if len(pieces) == 1 else torch.cat([q[:0], *pieces])


def _context(caches: tuple[Tensor, Tensor], used: Tensor, length: int) -> list[Tensor]:
    """Keys and values of a sequence, `[length, num_kv_heads, head_dim]`; views where its blocks lie in a row."""
    blocks, size, token_shape = used.tolist(), caches[0].shape[1], caches[0].shape[2:]
    if blocks == list(range(blocks[0], blocks[0] + len(blocks))):
        return [cache.view(-1, *token_shape).narrow(0, blocks[0] * size, length) for cache in caches]
    return [cache.index_select(0, used).view(-1, *token_shape)[:length] for cache in caches]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence, `[tokens, heads, head_dim]`, with at least as many keys as queries."""
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
    if num_queries == 1:  # a kv head's query heads are rows of one product
        rows = q.view(1, num_kv_heads, -1, head_dim)
        return F.scaled_dot_product_attention(rows, k, v, scale=scale).view(1, num_heads, head_dim)
    group = num_heads // num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask = None
    if num_queries < num_keys:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    rows = q.transpose(0, 1).unsqueeze(0)
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o.squeeze(0).transpose(0, 1)


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    lengths: list[int],
    scale: float,
) -> Tensor:
    """One query a sequence, those of about the same length together; context 0 yields zeros."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length.bit_length(), []).append(row)
    if len(groups) == 1:
        return _decode_alike(q, k_cache, v_cache, block_table, context_lens, min(lengths), max(lengths), scale)
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for group in groups.values():
        rows, own = torch.tensor(group), [lengths[row] for row in group]
        o[rows] = _decode_alike(
            q[rows], k_cache, v_cache, block_table[rows], context_lens[rows], min(own), max(own), scale
        )
    return o


def _decode_alike(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    shortest: int,
    longest: int,
    scale: float,
) -> Tensor:
    """One query a sequence, `longest` being less than twice `shortest`."""
    (num_seqs, num_heads, head_dim), (_, block_size, num_kv_heads, _) = q.shape, k_cache.shape
    blocks = block_table[:, : -(-longest // block_size), None]
    slots = torch.add(torch.arange(block_size), blocks, alpha=block_size).flatten(1)[:, :longest]
    mask, weight_of_mask = q.new_empty(1), 0
    if shortest < longest:
        live = torch.arange(longest) < context_lens.unsqueeze(1)  # [num_seqs, longest]
        slots = torch.where(live, slots, slots[:, :1])
        mask, weight_of_mask = torch.where(live, q.new_zeros(1), -torch.inf), 1
        mask = mask.repeat_interleave(num_kv_heads, 0).unsqueeze(1)
    rows = torch.add(torch.arange(num_kv_heads).unsqueeze(1), slots.unsqueeze(1), alpha=num_kv_heads).flatten()
    k, v = (cache.view(-1, head_dim).index_select(0, rows) for cache in (k_cache, v_cache))
    k, v = (x.view(num_seqs * num_kv_heads, longest, head_dim) for x in (k, v))
    q = q.reshape(num_seqs * num_kv_heads, -1, head_dim)  # a kv head's query heads are rows of one product
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), beta=weight_of_mask, alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), v).view(num_seqs, num_heads, head_dim)
