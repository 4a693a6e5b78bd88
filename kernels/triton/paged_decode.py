"""The decode path of paged_attention: one query per sequence, bound by the speed of reading the cache.

    o = sum_j softmax_j(scale * q . k_j) v_j, over all of a sequence's cached context

The query heads of one kv head share a tile, so each key and value is read once. A context is cut in pieces of SPLIT
tokens, a fixed size: its bits depend on its own length alone. A fixed number of programs takes the live pieces of all
sequences in turn, each finding its own on the device from the context lengths; so a batch of very unequal lengths
stays balanced, a single long context fills the GPU, nothing is planned on the host, and the launch depends on buffer
sizes only, as a CUDA graph needs. Each piece leaves its (m, l, acc) in a float32 workspace, and a second kernel folds
a sequence's pieces in order, as prefill does, so a query has prefill's bits. Only loads and the chain of folds take
time there: modelled for an H100, 512 pieces (128k tokens) take 32 rounds of 0.5 us, a tenth of the 180 us in which the
cache of one layer with 8 kv heads of 128 is read, so no tree of partial folds is needed.
Without a query nothing is read; context 0 and padding rows give zeros. With a window the pieces that lie wholly before
it are left out; the others are cut where they always are.
A tile's mathematics is in attention_tile.py; splitting the context: https://pytorch.org/blog/flash-decoding/
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.attention_tile import (
    SPLIT,
    attend_cache,
    fold,
    fold_sink,
    head_tile,
    load_rows,
    normalise,
    nothing,
    scales,
    zero_rows,
)

UNROLL = 16  # pieces whose partial results are asked for before the first of them is folded
SEQS = 128  # sequences looked through at once for the owner of a piece


# fmt: off
@triton.jit
def _contexts(context_lens_ptr, cu_seqlens_q_ptr, seq, live, capacity):
    """How much of the cache these sequences read: nothing without a query."""
    begin = tl.load(cu_seqlens_q_ptr + seq, mask=live, other=0)
    end = tl.load(cu_seqlens_q_ptr + seq + 1, mask=live, other=0)
    length = tl.load(context_lens_ptr + seq, mask=live, other=0)
    return tl.where(end > begin, tl.minimum(length, capacity), 0)


@triton.jit
def _find_piece(
    context_lens_ptr, cu_seqlens_q_ptr, num_seqs, capacity, window, piece, SPLIT: tl.constexpr, SEQS: tl.constexpr
):
    """Of all pieces, sequence after sequence: the owner of that one, the pieces before the owner's, their total."""
    owner, before, total = 0, 0, 0
    for start in range(0, num_seqs, SEQS):
        seq = start + tl.arange(0, SEQS)
        context = _contexts(context_lens_ptr, cu_seqlens_q_ptr, seq, seq < num_seqs, capacity)
        pieces = tl.cdiv(context, SPLIT)
        if window is not None:
            pieces -= tl.maximum(context - window, 0) // SPLIT
        end = total + tl.cumsum(pieces, 0)
        passed = (end <= piece) & (seq < num_seqs)
        owner += tl.sum(passed.to(tl.int32))
        before = tl.maximum(before, tl.max(tl.where(passed, end, 0)))
        total += tl.sum(pieces)
    return owner, before, total


@triton.jit(
    do_not_specialize=["num_seqs", "capacity", "stride_table"],
    do_not_specialize_on_alignment=["block_table_ptr", "context_lens_ptr", "cu_seqlens_q_ptr"],
)
def _split_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, partial_ptr, stats_ptr, block_table_ptr, context_lens_ptr, cu_seqlens_q_ptr,
    num_seqs, capacity, window, scale_log2, cap_scale,
    stride_q_token, stride_q_head, stride_block, stride_slot, stride_head, stride_table,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    SPLIT: tl.constexpr, SEQS: tl.constexpr, BLOCK_N: tl.constexpr,
):
    offs_d, offs_g = tl.arange(0, HEAD_TILE), tl.arange(0, GROUP_TILE)
    _, _, total = _find_piece(context_lens_ptr, cu_seqlens_q_ptr, num_seqs, capacity, window, 0, SPLIT, SEQS)
    for item in range(tl.program_id(0), total * NUM_KV_HEADS, tl.num_programs(0)):
        piece, kv_head = item // NUM_KV_HEADS, item % NUM_KV_HEADS
        seq, before, _ = _find_piece(context_lens_ptr, cu_seqlens_q_ptr, num_seqs, capacity, window, piece, SPLIT, SEQS)
        first = (piece - before) * SPLIT
        context = tl.minimum(tl.load(context_lens_ptr + seq), capacity)
        low, lower = 0, None
        if window is not None:
            low = tl.maximum(context - window, 0)
            lower = tl.full([GROUP_TILE], 0, tl.int32) + low
            piece += low // SPLIT  # pieces before the window are nobody's
            first = tl.maximum((piece - before) * SPLIT, low // BLOCK_N * BLOCK_N)
        last = tl.minimum((piece - before) * SPLIT + SPLIT, context)

        head = kv_head * GROUP + offs_g  # [GROUP_TILE]
        token = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
        q_tile = q_ptr + token * stride_q_token + head[:, None] * stride_q_head + offs_d[None, :]
        q = load_rows(q_tile, offs_g, GROUP, offs_d, HEAD_DIM, True)  # [GROUP_TILE, D]
        folded = attend_cache(
            q, k_cache_ptr + kv_head * stride_head, v_cache_ptr + kv_head * stride_head,
            block_table_ptr + seq.to(tl.int64) * stride_table, stride_block, stride_slot,
            tl.full([GROUP_TILE], 0, tl.int32) + last - 1, lower, low, offs_d, first, last,
            None, nothing(GROUP_TILE, HEAD_TILE), scale_log2, cap_scale,
            HEAD_DIM, BLOCK_SIZE, BLOCK_N, SPLIT, PRECISION, True,
        )
        m_i, l_i, acc = folded[1]

        index = (seq.to(tl.int64) * tl.cdiv(capacity, SPLIT) + piece - before) * NUM_KV_HEADS * GROUP + head
        live = offs_g < GROUP
        tl.store(stats_ptr + index * 2, m_i, mask=live)
        tl.store(stats_ptr + index * 2 + 1, l_i, mask=live)
        mask = live[:, None] & (offs_d < HEAD_DIM)[None, :]
        tl.store(partial_ptr + index[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=mask)


@triton.jit(
    do_not_specialize=["num_seqs", "num_tokens", "capacity"],
    do_not_specialize_on_alignment=["context_lens_ptr", "cu_seqlens_q_ptr"],
)
def _merge_kernel(
    partial_ptr, stats_ptr, o_ptr, context_lens_ptr, cu_seqlens_q_ptr, sinks_ptr,
    num_seqs, num_tokens, capacity, window,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr,
    SPLIT: tl.constexpr, UNROLL: tl.constexpr,
):
    seq, head = tl.program_id(0), tl.program_id(1)
    offs_d = tl.arange(0, HEAD_TILE)
    first_padding = tl.maximum(tl.load(cu_seqlens_q_ptr + num_seqs), seq)  # this program's row, if it is padding
    zero_rows(o_ptr, first_padding, tl.minimum(seq + 1, num_tokens), 1, head, offs_d, NUM_HEADS, HEAD_DIM, 1)
    if seq >= num_seqs:
        return
    token = tl.load(cu_seqlens_q_ptr + seq)
    if tl.load(cu_seqlens_q_ptr + seq + 1) == token:
        return
    context = tl.minimum(tl.load(context_lens_ptr + seq), capacity)
    num_pieces = tl.cdiv(context, SPLIT)
    first_piece = 0
    if window is not None:
        first_piece = tl.maximum(context - window, 0) // SPLIT
    begin = seq.to(tl.int64) * tl.cdiv(capacity, SPLIT)
    one = tl.arange(0, 1)
    past = nothing(1, HEAD_TILE)
    for piece in tl.range(first_piece, num_pieces, loop_unroll_factor=UNROLL):
        index = (begin + piece) * NUM_HEADS + head + one
        m_i, l_i = tl.load(stats_ptr + index * 2), tl.load(stats_ptr + index * 2 + 1)
        acc_tile = partial_ptr + index[:, None] * HEAD_DIM + offs_d[None, :]
        past = fold(past, (m_i, l_i, load_rows(acc_tile, one, 1, offs_d, HEAD_DIM, False)))  # acc [1, D]
    m_i, l_i, acc = past
    if sinks_ptr is not None:
        l_i, alpha = fold_sink(m_i, l_i, tl.load(sinks_ptr + head))
        acc *= alpha[:, None]
    o = normalise(l_i, acc)
    offset = (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + offs_d[None, :]
    tl.store(o_ptr + offset, o.to(o_ptr.dtype.element_ty), mask=(offs_d < HEAD_DIM)[None, :])
# fmt: on


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    o: Tensor,
) -> None:
    """Fill o, shaped as q and contiguous; the other arguments are those of paged_attention, already checked there."""
    num_tokens, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    num_seqs, group = len(context_lens), num_heads // num_kv_heads
    capacity = block_table.shape[1] * block_size
    pieces = num_seqs * triton.cdiv(capacity, SPLIT)
    partial = torch.empty((pieces, num_heads, head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((pieces, num_heads, 2), dtype=torch.float32, device=q.device)  # m and l
    config, resident = launch.paged_decode(q.device, q.dtype, head_dim, group)
    if pieces > 0:
        _split_kernel[(min(pieces * num_kv_heads, resident),)](
            q,
            k_cache,
            v_cache,
            partial,
            stats,
            block_table,
            context_lens,
            cu_seqlens_q,
            num_seqs,
            capacity,
            window or None,
            *scales(scale, softcap),
            *q.stride()[:2],
            *k_cache.stride()[:3],
            block_table.stride(0),
            NUM_KV_HEADS=num_kv_heads,
            GROUP=group,
            HEAD_DIM=head_dim,
            HEAD_TILE=head_tile(head_dim),
            BLOCK_SIZE=block_size,
            PRECISION="ieee",
            SPLIT=SPLIT,
            SEQS=SEQS,
            **config,
        )
    _merge_kernel[(max(num_seqs, num_tokens), num_heads)](
        partial,
        stats,
        o,
        context_lens,
        cu_seqlens_q,
        sinks,
        num_seqs,
        num_tokens,
        capacity,
        window or None,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        HEAD_TILE=head_tile(head_dim),
        SPLIT=SPLIT,
        UNROLL=UNROLL,
        **launch.merge(head_dim),
    )
