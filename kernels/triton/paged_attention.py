"""paged_attention: any number of queries per sequence against its cached context, block by block.

    o_i = sum_{j <= position_i} softmax_j(scale * q_i . k_j) v_j, with position_i = context_len - num_queries + i

Prefill (max_seqlen_q > 1) is here: it walks over tiles of queries and keys as causal_attention does, its keys found
through the block table, and gives the same bits for the same query, whatever the chunk or the block size. A sequence
with a single query takes this path too, beside longer ones. Decode (max_seqlen_q == 1) is in paged_decode.py.
A context is cut off at what its block table can name. Padding (context 0, no query, rows of q beyond the last sequence)
gives zeros. Of q and the caches the last dimension must be contiguous; rows that start at multiples of 16 bytes load at
full width; a block id becomes an int64 address at once. The cache layout is vLLM's: https://arxiv.org/abs/2309.06180
"""

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.attention_tile import (
    HEADS_TOGETHER,
    SPLIT,
    attend_cache,
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
from octavo.kernels.triton.checks import check_bounds, check_heads, check_kind, check_tensor, values_are_readable
from octavo.kernels.triton.paged_decode import decode

MAX_BLOCK_SIZE = 256


# fmt: off
@triton.jit(
    do_not_specialize=["num_tokens", "capacity", "stride_table"],
    do_not_specialize_on_alignment=["block_table_ptr", "context_lens_ptr", "cu_seqlens_q_ptr"],
)
def _prefill_kernel(
    q_ptr, k_cache_ptr, v_cache_ptr, o_ptr, block_table_ptr, context_lens_ptr, cu_seqlens_q_ptr,
    sinks_ptr, num_tokens, capacity, window, scale_log2, cap_scale,
    stride_q_token, stride_q_head, stride_block, stride_slot, stride_head, stride_table,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, HEADS_TOGETHER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    seq, num_seqs = tl.program_id(2), tl.num_programs(2) - 1
    head = tl.program_id(1) * HEADS_TOGETHER + tl.program_id(0) % HEADS_TOGETHER
    if head >= NUM_HEADS:
        return
    tile_q, num_tiles_q = tl.program_id(0) // HEADS_TOGETHER, tl.num_programs(0) // HEADS_TOGETHER
    offs_d = tl.arange(0, HEAD_TILE)
    begin = tl.load(cu_seqlens_q_ptr + seq)
    if seq == num_seqs:  # the padding after the last sequence
        start = begin + tile_q * BLOCK_M
        zero_rows(o_ptr, start, num_tokens, num_tiles_q * BLOCK_M, head, offs_d, NUM_HEADS, HEAD_DIM, BLOCK_M)
        return
    num_queries = tl.load(cu_seqlens_q_ptr + seq + 1) - begin
    first_row = (tl.cdiv(num_queries, BLOCK_M) - 1 - tile_q) * BLOCK_M
    if first_row < 0:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    context = tl.minimum(tl.load(context_lens_ptr + seq), capacity)
    position = context - num_queries + row
    first_position = context - num_queries + first_row
    last_key = tl.minimum(first_position + BLOCK_M, context)
    last_full = tl.maximum(first_position + 1, 0) // BLOCK_N * BLOCK_N  # keys before it are seen by every row

    begin = begin.to(tl.int64)
    q_ptr += (begin + first_row) * stride_q_token + head * stride_q_head
    k_cache_ptr += head // GROUP * stride_head
    v_cache_ptr += head // GROUP * stride_head
    table_ptr = block_table_ptr + seq.to(tl.int64) * stride_table
    q_tile = q_ptr + tl.arange(0, BLOCK_M)[:, None] * stride_q_token + offs_d[None, :]
    q = load_rows(q_tile, row, num_queries, offs_d, HEAD_DIM, True)  # [BLOCK_M, D]
    past, piece = nothing(BLOCK_M, HEAD_TILE), nothing(BLOCK_M, HEAD_TILE)
    low, first_full, lower = 0, 0, None
    if window is not None:
        low, first_key, first_full = first_tiles(first_position, last_full, window, BLOCK_M, BLOCK_N)
        lower = position + 1 - window
        past, piece = attend_cache(
            q, k_cache_ptr, v_cache_ptr, table_ptr, stride_block, stride_slot,
            position, lower, low, offs_d, first_key, first_full,
            past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_SIZE, BLOCK_N, SPLIT, PRECISION, True,
        )
    past, piece = attend_cache(
        q, k_cache_ptr, v_cache_ptr, table_ptr, stride_block, stride_slot,
        position, None, low, offs_d, first_full, last_full,
        past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_SIZE, BLOCK_N, SPLIT, PRECISION, False,
    )
    past, piece = attend_cache(
        q, k_cache_ptr, v_cache_ptr, table_ptr, stride_block, stride_slot,
        position, lower, low, offs_d, last_full, last_key,
        past, piece, scale_log2, cap_scale, HEAD_DIM, BLOCK_SIZE, BLOCK_N, SPLIT, PRECISION, True,
    )
    m_i, l_i, acc = fold(past, piece)
    if sinks_ptr is not None:
        l_i, alpha = fold_sink(m_i, l_i, tl.load(sinks_ptr + head))
        acc *= alpha[:, None]

    o = normalise(l_i, acc).to(o_ptr.dtype.element_ty)
    o_tile = o_ptr + ((begin + row)[:, None] * NUM_HEADS + head) * HEAD_DIM + offs_d[None, :]
    tl.store(o_tile, o, mask=(row < num_queries)[:, None] & (offs_d < HEAD_DIM)[None, :])
# fmt: on


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
    """Each sequence's newest tokens attend to its cached context, causal from the bottom right.

    q `[num_tokens, num_heads, head_dim]`; k_cache and v_cache `[num_blocks, block_size, num_kv_heads, head_dim]` of q's
    dtype with the same strides, block_size a power of two up to 256; block_table `[num_seqs, max_blocks]`, -1 unused;
    context_lens `[num_seqs]` counts the cached tokens, this step's included; cu_seqlens_q `[num_seqs + 1]` from 0, all
    int32; max_seqlen_q bounds the longest query, and 1 chooses decode; scale > 0. Returns o shaped as q, contiguous; an
    empty view yields zeros. window, softcap and sinks as in the reference. ValueError on a wrong rank, shape, dtype,
    device, stride, head_dim or block size; the contents of index tensors are checked on a CPU, or under TRITON_DEBUG=1.
    """
    check_kind(q, window, softcap, sinks)
    _check(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, max_seqlen_q, scale, window)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if len(q) == 0:
        return o
    if max_seqlen_q <= 1:
        decode(q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, scale, window, softcap, sinks, o)
        return o
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = k_cache.shape[1:3]
    config = launch.attention(q.device, q.dtype, head_dim)
    tiles = triton.cdiv(max_seqlen_q, config["BLOCK_M"])
    grid = (
        tiles * HEADS_TOGETHER,
        triton.cdiv(num_heads, HEADS_TOGETHER),
        len(cu_seqlens_q),
    )  # the last "sequence" is the padding
    _prefill_kernel[grid](
        q,
        k_cache,
        v_cache,
        o,
        block_table,
        context_lens,
        cu_seqlens_q,
        sinks,
        len(q),
        block_table.shape[1] * block_size,
        window or None,
        *scales(scale, softcap),
        *q.stride()[:2],
        *k_cache.stride()[:3],
        block_table.stride(0),
        NUM_HEADS=num_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        HEAD_TILE=head_tile(head_dim),
        BLOCK_SIZE=block_size,
        SPLIT=SPLIT,
        PRECISION="ieee",
        HEADS_TOGETHER=HEADS_TOGETHER,
        **config,
    )
    return o


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
    window: int,
) -> None:
    if k_cache.ndim != 4:
        raise ValueError(
            f"k_cache must be [num_blocks, block_size, num_kv_heads, head_dim], not {tuple(k_cache.shape)}"
        )
    check_heads(q, k_cache, v_cache, ("k_cache", "v_cache"), scale)
    if v_cache.stride() != k_cache.stride():
        raise ValueError(f"v_cache must have the strides of k_cache {k_cache.stride()}, not {v_cache.stride()}")
    block_size = k_cache.shape[1]
    if not 1 <= block_size <= MAX_BLOCK_SIZE or block_size & (block_size - 1):
        raise ValueError(f"block_size of k_cache must be a power of two up to {MAX_BLOCK_SIZE}, not {block_size}")
    num_seqs, table_shape = context_lens.numel(), (context_lens.numel(), *block_table.shape[-1:])
    check_tensor("context_lens", context_lens, (num_seqs,), q.device, torch.int32)
    check_tensor("block_table", block_table, table_shape, q.device, torch.int32, strided_rows=True)
    check_tensor("cu_seqlens_q", cu_seqlens_q, (num_seqs + 1,), q.device, torch.int32)
    check_bounds("cu_seqlens_q", cu_seqlens_q, max_seqlen_q, "max_seqlen_q", len(q))
    if values_are_readable(context_lens):
        _check_contexts(k_cache, block_table, context_lens, cu_seqlens_q, window)


def _check_contexts(
    k_cache: Tensor, block_table: Tensor, context_lens: Tensor, cu_seqlens_q: Tensor, window: int
) -> None:
    """Where the values may be read: ValueError unless all blocks that are seen are named, and lie in the cache."""
    num_blocks, block_size = k_cache.shape[:2]
    queries = [b - a for a, b in pairwise(cu_seqlens_q.tolist())]
    contexts = zip(context_lens.tolist(), block_table.tolist(), queries, strict=True)
    for seq, (length, blocks, num_queries) in enumerate(contexts):
        first = max(0, length - num_queries + 1 - window) // block_size if window else 0
        used = blocks[first : -(-length // block_size)]
        if not 0 <= length <= len(blocks) * block_size:
            capacity = f"{len(blocks)} blocks of {block_size}"
            raise ValueError(f"context_lens[{seq}] is {length}, but its row of block_table holds {capacity}")
        if any(not 0 <= block < num_blocks for block in used):
            raise ValueError(f"block_table[{seq}] must name blocks of a cache of {num_blocks}, not {used}")
