"""Attention on a CPU, over a step's own tokens or over the paged cache.

Decode is one gather and two batched products for all sequences: keys and values are collected head by head, so the
products read them as they lie. Sequences are padded to the longest among those of about the same length, so at most
half is padding; a padded place holds the sequence's first key, which the mask then removes, so that what lies in an
unused slot is never read. Prefill is PyTorch's fused kernel, one call a sequence. Which rows and masks that takes is
planned once a step, not in every layer.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.memo import Memo, once


class Group(NamedTuple):
    """Decoding sequences of about one length, padded to the longest."""

    seqs: Tensor | None  # which; None: all
    rows: Tensor  # int64, num_seqs * num_kv_heads * longest: of the cache as `[-1, head_dim]`, head by head
    mask: Tensor  # [num_seqs * num_kv_heads, 1, longest]: 0, or -inf for padding
    weight_of_mask: int  # 0 where nothing is padding, and `mask` anything


class Piece(NamedTuple):
    """One sequence: its queries that see anything, and its context."""

    first: int  # of the tokens
    last: int
    length: int
    slot: int  # of the first key
    blocks: Tensor | None  # None: they lie in a row
    mask: Tensor | None  # [queries, length]; None: causal where queries and keys are as many, else none


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = _attend(q[a:b], k[:, :, a:b], v[:, :, a:b], None, scale)
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
    memo: Memo | None = None,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context: see the reference."""

    def plan() -> tuple[list[Group], list[Piece]]:
        num_seqs = len(context_lens)
        is_one_each = max_seqlen_q == 1 and len(q) == num_seqs == int(cu_seqlens_q[-1])
        # One sequence is best left to the fused kernel, unless it would multiply single bfloat16 rows.
        is_slow_alone = q.dtype != torch.float32 and q.shape[1] == k_cache.shape[2]
        if is_one_each and (num_seqs > 1 or is_slow_alone):
            return _groups(k_cache, block_table, context_lens), []
        return [], _pieces(k_cache.shape[1], block_table, context_lens, cu_seqlens_q)

    groups, pieces = once(memo, "attention", plan)
    if groups:
        return _decode(q, k_cache, v_cache, groups, scale)
    return _prefill(q, k_cache, v_cache, pieces, scale)


def _groups(cache: Tensor, block_table: Tensor, context_lens: Tensor) -> list[Group]:
    """Sequences whose lengths have as many binary digits: the longest is less than twice the shortest."""
    seqs: dict[int, list[int]] = {}
    for seq, length in enumerate(context_lens.tolist()):
        seqs.setdefault(length.bit_length(), []).append(seq)
    if len(seqs) == 1:
        return [_group(None, cache, block_table, context_lens)]
    return [_group(own, cache, block_table[own], context_lens[own]) for own in map(torch.tensor, seqs.values())]


def _group(seqs: Tensor | None, cache: Tensor, block_table: Tensor, context_lens: Tensor) -> Group:
    _, block_size, num_kv_heads, _ = cache.shape
    shortest, longest = (int(length) for length in context_lens.aminmax())
    blocks = block_table[:, : -(-longest // block_size), None]
    slots = torch.add(torch.arange(block_size), blocks, alpha=block_size).flatten(1)[:, :longest]
    mask = cache.new_zeros(1)
    if shortest < longest:
        live = torch.arange(longest) < context_lens.unsqueeze(1)  # [num_seqs, longest]
        slots = torch.where(live, slots, slots[:, :1])
        mask = torch.where(live, mask, -torch.inf).repeat_interleave(num_kv_heads, 0).unsqueeze(1)
    rows = torch.add(torch.arange(num_kv_heads).unsqueeze(1), slots.unsqueeze(1), alpha=num_kv_heads).flatten()
    return Group(seqs, rows, mask, int(shortest < longest))


def _decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, groups: list[Group], scale: float) -> Tensor:
    """One query a sequence; context 0 yields zeros."""
    if groups[0].seqs is None:
        return _decode_group(q, k_cache, v_cache, groups[0], scale)
    o = q.new_empty(q.shape)
    for group in groups:
        o[group.seqs] = _decode_group(q[group.seqs], k_cache, v_cache, group, scale)
    return o


def _decode_group(q: Tensor, k_cache: Tensor, v_cache: Tensor, group: Group, scale: float) -> Tensor:
    num_batches, head_dim = q.shape[0] * k_cache.shape[2], q.shape[2]
    k, v = (cache.view(-1, head_dim).index_select(0, group.rows) for cache in (k_cache, v_cache))
    k, v = (x.view(num_batches, len(group.rows) // num_batches, head_dim) for x in (k, v))
    rows = q.reshape(num_batches, -1, head_dim)  # a kv head's query heads are rows of one product
    scores = torch.baddbmm(group.mask, rows, k.transpose(1, 2), beta=group.weight_of_mask, alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), v).view(q.shape)


def _pieces(block_size: int, block_table: Tensor, context_lens: Tensor, cu_seqlens_q: Tensor) -> list[Piece]:
    """One a sequence; those of which no query sees a key are left out."""
    pieces = []
    bounds, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
    for (first, last), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        seen = min(last - first, length)
        if seen:
            used = blocks[: -(-length // block_size)]
            number = used.tolist()
            in_a_row = number == list(range(number[0], number[0] + len(number)))
            is_chunk = 1 < seen < length
            mask = torch.ones(seen, length, dtype=torch.bool).tril(length - seen) if is_chunk else None
            pieces.append(
                Piece(last - seen, last, length, number[0] * block_size, None if in_a_row else used.clone(), mask)
            )
    return pieces


def _prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, pieces: list[Piece], scale: float) -> Tensor:
    """Any number of queries a sequence; those of no piece see nothing, and yield zeros."""
    outputs, end = [], 0
    for piece in pieces:
        if end < piece.first:
            outputs.append(torch.zeros_like(q[end : piece.first]))
        k, v = _context(k_cache, piece), _context(v_cache, piece)
        outputs.append(_attend(q[piece.first : piece.last], k, v, piece.mask, scale))
        end = piece.last
    if end < len(q):
        outputs.append(torch.zeros_like(q[end:]))
    return outputs[0] if len(outputs) == 1 else torch.cat([q[:0], *outputs])


def _context(cache: Tensor, piece: Piece) -> Tensor:
    """Keys or values of a sequence, `[1, num_kv_heads, length, head_dim]`; a view where its blocks lie in a row."""
    (_, slot_stride, head_stride, _), offset = cache.stride(), cache.storage_offset()
    if piece.blocks is None:
        offset += piece.slot * slot_stride
    else:
        cache, offset = cache.index_select(0, piece.blocks), 0
    size = 1, cache.shape[2], piece.length, cache.shape[3]
    return cache.as_strided(size, (0, head_stride, slot_stride, 1), offset)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One sequence: q `[queries, num_heads, head_dim]`; k, v `[1, num_kv_heads, keys, head_dim]`, keys >= queries."""
    num_kv_heads, head_dim = k.shape[1], k.shape[3]
    if len(q) == 1:  # a kv head's query heads are rows of one product
        rows = q.view(1, num_kv_heads, -1, head_dim)
        return F.scaled_dot_product_attention(rows, k, v, scale=scale).view(q.shape)
    group = q.shape[1] // num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    rows = q.transpose(0, 1).unsqueeze(0)
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o.squeeze(0).transpose(0, 1)
