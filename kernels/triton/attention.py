"""causal_attention: fused attention of whole prompts, lying end to end, each token to itself and its past.

    o_i = sum_{j <= i} softmax_j(scale * q_i . k_j) v_j, within each sequence

One program owns BLOCK_M queries of one head of one sequence and walks over their keys: first the tiles of BLOCK_N keys
that all its queries see, with no mask, then the tiles that the diagonal crosses. Query tiles of a sequence start
longest first, so the last ones to run are short; HEADS_TOGETHER heads advance side by side, so that their keys and
values are read from L2 by many tiles at once. A head of k and v serves its group of query heads in place. A head_dim
that is no power of two is padded inside. Rows of q beyond the last sequence (padding) come out as zeros.
q, k and v may be strided views of one fused projection whose last dimension is contiguous; rows that start at multiples
of 16 bytes load at full width. The mathematics of a tile is in attention_tile.py; https://arxiv.org/abs/2307.08691
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.attention_tile import (
    HEADS_TOGETHER,
    SPLIT,
    attend,
    end_tile,
    first_tiles,
    fold,
    fold_sink,
    head_tile,
    load_rows,
    normalise,
    nothing,
    scales,
    zero_rows,
)
from octavo.kernels.triton.checks import check_bounds, check_heads, check_kind, check_tensor


@triton.jit
def _attend_keys(
    q,
    k_ptr,
    v_ptr,
    stride_k,
    stride_v,
    begin,
    row,
    lower,
    offs_d,
    first,
    last,
    past,
    piece,
    scale_log2,
    cap_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take keys `[first, last)` of one sequence into `piece`, and each piece that ends into `past`.

    Without MASKED all rows must see them all.
    """
    lane = tl.arange(0, BLOCK_N)
    k_tile = k_ptr + (begin + first) * stride_k + lane[:, None] * stride_k + offs_d[None, :]
    v_tile = v_ptr + (begin + first) * stride_v + lane[:, None] * stride_v + offs_d[None, :]
    for start in range(first, last, BLOCK_N):
        key = start + lane
        k = load_rows(k_tile, key, last, offs_d, HEAD_DIM, MASKED)  # [BLOCK_N, D]
        v = load_rows(v_tile, key, last, offs_d, HEAD_DIM, MASKED)  # [BLOCK_N, D]
        visible = key[None, :] <= row[:, None]
        if lower is not None:
            visible &= key[None, :] >= lower[:, None]
        piece = attend(q, k, v, visible, piece, scale_log2, cap_scale, MASKED, PRECISION)
        past, piece = end_tile(start + BLOCK_N, past, piece, SPLIT)
        k_tile += BLOCK_N * stride_k
        v_tile += BLOCK_N * stride_v
    return past, piece


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["cu_seqlens_ptr"])
def _causal_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    cu_seqlens_ptr,
    sinks_ptr,
    num_tokens,
    window,
    scale_log2,
    cap_scale,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS_TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    seq, num_seqs = tl.program_id(2), tl.num_programs(2) - 1
    head = tl.program_id(1) * HEADS_TOGETHER + tl.program_id(0) % HEADS_TOGETHER
    if head >= NUM_HEADS:
        return
    tile_q, num_tiles_q = tl.program_id(0) // HEADS_TOGETHER, tl.num_programs(0) // HEADS_TOGETHER
    offs_d = tl.arange(0, HEAD_TILE)
    begin = tl.load(cu_seqlens_ptr + seq)
    if seq == num_seqs:  # the padding after the last sequence
        zero_rows(
            o_ptr,
            begin + tile_q * BLOCK_M,
            num_tokens,
            num_tiles_q * BLOCK_M,
            head,
            offs_d,
            NUM_HEADS,
            HEAD_DIM,
            BLOCK_M,
        )
        return
    length = tl.load(cu_seqlens_ptr + seq + 1) - begin
    first_row = (tl.cdiv(length, BLOCK_M) - 1 - tile_q) * BLOCK_M
    if first_row < 0:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    last_key = tl.minimum(first_row + BLOCK_M, length)
    last_full = (first_row + 1) // BLOCK_N * BLOCK_N  # keys before it are seen by every row

    begin = begin.to(tl.int64)
    q_ptr += (begin + first_row) * stride_q_token + head * stride_q_head
    k_ptr += head // GROUP * stride_k_head
    v_ptr += head // GROUP * stride_v_head
    q_tile = q_ptr + tl.arange(0, BLOCK_M)[:, None] * stride_q_token + offs_d[None, :]
    q = load_rows(q_tile, row, length, offs_d, HEAD_DIM, True)  # [BLOCK_M, D]
    past, piece = nothing(BLOCK_M, HEAD_TILE), nothing(BLOCK_M, HEAD_TILE)
    first_full, lower = 0, None
    if window is not None:
        _, first_key, first_full = first_tiles(first_row, last_full, window, BLOCK_M, BLOCK_N)
        lower = row + 1 - window
        past, piece = _attend_keys(
            q, k_ptr, v_ptr, stride_k_token, stride_v_token, begin, row, lower, offs_d, first_key, first_full,
            past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_N, SPLIT, PRECISION, True,
        )  # fmt: skip
    past, piece = _attend_keys(
        q, k_ptr, v_ptr, stride_k_token, stride_v_token, begin, row, None, offs_d, first_full, last_full,
        past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_N, SPLIT, PRECISION, False,
    )  # fmt: skip
    past, piece = _attend_keys(
        q, k_ptr, v_ptr, stride_k_token, stride_v_token, begin, row, lower, offs_d, last_full, last_key,
        past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_N, SPLIT, PRECISION, True,
    )  # fmt: skip
    m_i, l_i, acc = fold(past, piece)
    if sinks_ptr is not None:
        l_i, alpha = fold_sink(m_i, l_i, tl.load(sinks_ptr + head))
        acc *= alpha[:, None]

    o = normalise(l_i, acc).to(o_ptr.dtype.element_ty)
    o_tile = o_ptr + ((begin + row)[:, None] * NUM_HEADS + head) * HEAD_DIM + offs_d[None, :]
    tl.store(o_tile, o, mask=(row < length)[:, None] & (offs_d < HEAD_DIM)[None, :])


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
    """Each token attends to itself and the earlier tokens of its own sequence.

    q `[num_tokens, num_heads, head_dim]`, k and v `[num_tokens, num_kv_heads, head_dim]`, float32, float16 or bfloat16,
    with num_heads a multiple of num_kv_heads and head_dim a multiple of 4 up to 256; cu_seqlens `[num_seqs + 1]` int32,
    from 0; max_seqlen bounds the longest sequence; scale > 0. Returns o shaped as q, contiguous, zeros in rows beyond
    the last sequence. window, softcap and sinks as in the reference. ValueError on a wrong rank, shape, dtype, device,
    stride or bound.
    """
    if k.ndim != 3 or len(k) != len(q):
        raise ValueError(f"k must be [{len(q)}, num_kv_heads, head_dim], not {tuple(k.shape)}")
    check_heads(q, k, v, ("k", "v"), scale)
    check_kind(q, window, softcap, sinks)
    check_tensor("cu_seqlens", cu_seqlens, (cu_seqlens.numel(),), q.device, torch.int32)
    check_bounds("cu_seqlens", cu_seqlens, max_seqlen, "max_seqlen", len(q))
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if len(q) == 0:
        return o
    num_heads, head_dim = q.shape[1:]
    config = launch.attention(q.device, q.dtype, head_dim)
    tiles = max(1, triton.cdiv(max_seqlen, config["BLOCK_M"]))
    grid = (
        tiles * HEADS_TOGETHER,
        triton.cdiv(num_heads, HEADS_TOGETHER),
        len(cu_seqlens),
    )  # the last "sequence" is the padding
    _causal_attention_kernel[grid](
        q,
        k,
        v,
        o,
        cu_seqlens,
        sinks,
        len(q),
        window or None,
        *scales(scale, softcap),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        NUM_HEADS=num_heads,
        GROUP=num_heads // k.shape[1],
        HEAD_DIM=head_dim,
        HEAD_TILE=head_tile(head_dim),
        SPLIT=SPLIT,
        PRECISION="ieee",
        HEADS_TOGETHER=HEADS_TOGETHER,
        **config,
    )
    return o
