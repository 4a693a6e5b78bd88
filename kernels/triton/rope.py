"""rope: rotate pairs of each head of q and k by an angle that grows with the position.

    (a, b) -> (a cos - b sin, b cos + a sin), cos and sin from row `position` of the tables

Of a head the first rotary_dim values are rotated, the others copied. Pairs are (i, i + rotary_dim / 2), or neighbours
(2i, 2i + 1) when interleaved: neighbours are read as one contiguous line and parted in registers, so both
pairings load 16 bytes a thread. One program rotates whole heads of one token,
heads of q first, then heads of k; positions are data, so any tokens may stand side by side. float32 inside, one
rounding. q and k may be strided views of one fused projection; of every tensor only the last dimension must be
contiguous. A position outside the tables gives NaN, never a read outside them. https://arxiv.org/abs/2104.09864
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import FLOATS, check_alike, check_tensor


@triton.jit(do_not_specialize=["context_size"])
def _rope_kernel(
    q_out_ptr,
    k_out_ptr,
    q_ptr,
    k_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    context_size,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr,
    TILE_REST: tl.constexpr,
):
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_tiles: tl.constexpr = (NUM_HEADS + TILE_HEADS - 1) // TILE_HEADS
    if tile < q_tiles:
        head, num_heads, stride_head = tile * TILE_HEADS, NUM_HEADS, stride_q_head
        x_ptr, y_ptr = q_ptr + token * stride_q_token, q_out_ptr + token * (NUM_HEADS * HEAD_DIM)
    else:
        head, num_heads, stride_head = (tile - q_tiles) * TILE_HEADS, NUM_KV_HEADS, stride_k_head
        x_ptr, y_ptr = k_ptr + token * stride_k_token, k_out_ptr + token * (NUM_KV_HEADS * HEAD_DIM)
    head += tl.arange(0, TILE_HEADS)[:, None]

    position = tl.load(positions_ptr + token).to(tl.int64)
    column = tl.arange(0, TILE_HALF)
    table_mask = (position >= 0) & (position < context_size) & (column < HALF_DIM)
    cos = tl.load(cos_ptr + position * HALF_DIM + column, table_mask, float("nan"))[None, :]  # [1, TILE_HALF]
    sin = tl.load(sin_ptr + position * HALF_DIM + column, table_mask, float("nan"))[None, :]

    if INTERLEAVED:
        pair = tl.arange(0, 2 * TILE_HALF)[None, :]
        mask = (head < num_heads) & (pair < 2 * HALF_DIM)
        x = tl.load(x_ptr + head * stride_head + pair, mask, 0.0).to(tl.float32)  # [TILE_HEADS, 2 * TILE_HALF]
        a, b = tl.split(x.reshape(TILE_HEADS, TILE_HALF, 2))
        y = tl.join(a * cos - b * sin, b * cos + a * sin).reshape(TILE_HEADS, 2 * TILE_HALF)
        tl.store(y_ptr + head * HEAD_DIM + pair, y.to(y_ptr.dtype.element_ty), mask)
    else:
        mask = (head < num_heads) & (column < HALF_DIM)[None, :]
        x_ptrs, y_ptrs = x_ptr + head * stride_head + column[None, :], y_ptr + head * HEAD_DIM + column[None, :]
        a = tl.load(x_ptrs, mask, 0.0).to(tl.float32)  # [TILE_HEADS, TILE_HALF]
        b = tl.load(x_ptrs + HALF_DIM, mask, 0.0).to(tl.float32)
        tl.store(y_ptrs, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask)
        tl.store(y_ptrs + HALF_DIM, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask)

    if HEAD_DIM > 2 * HALF_DIM:
        rest = 2 * HALF_DIM + tl.arange(0, TILE_REST)[None, :]
        mask = (head < num_heads) & (rest < HEAD_DIM)
        tl.store(y_ptr + head * HEAD_DIM + rest, tl.load(x_ptr + head * stride_head + rest, mask, 0.0), mask)


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotated copies of q and k.

    q `[num_tokens, num_heads, head_dim]` and k `[num_tokens, num_kv_heads, head_dim]` of one dtype (float32, float16,
    bfloat16), strided views welcome; positions `[num_tokens]` int32 or int64; cos and sin float32
    `[context_size, rotary_dim / 2]`, rotary_dim at most head_dim. Pairs are `(i, i + rotary_dim / 2)`, or
    `(2i, 2i + 1)` when interleaved. ValueError on anything else.
    """
    _check(q, k, positions, cos, sin)
    (num_tokens, num_heads, head_dim), num_kv_heads, half_dim = q.shape, k.shape[1], cos.shape[1]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if num_tokens == 0:
        return q_out, k_out
    config = launch.rope(q.device, num_heads, half_dim)
    tiles = (triton.cdiv(heads, config["TILE_HEADS"]) for heads in (num_heads, num_kv_heads))
    _rope_kernel[(num_tokens, sum(tiles))](
        q_out,
        k_out,
        q,
        k,
        positions,
        cos,
        sin,
        cos.shape[0],
        *q.stride()[:2],
        *k.stride()[:2],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF_DIM=half_dim,
        INTERLEAVED=interleaved,
        TILE_REST=triton.next_power_of_2(head_dim - 2 * half_dim),
        **config,
    )
    return q_out, k_out


def _check(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.ndim != 3 or q.shape[2] % 2 or q.dtype not in FLOATS:
        raise ValueError(f"q must be [num_tokens, num_heads, even head_dim], not {list(q.shape)} {q.dtype}")
    if k.ndim != 3 or k.shape[::2] != q.shape[::2]:
        raise ValueError(f"k must be [{q.shape[0]}, num_kv_heads, {q.shape[2]}], not {list(k.shape)}")
    check_alike(q, q=q, k=k)
    check_tensor("positions", positions, q.shape[:1], q.device, torch.int32, torch.int64)
    half_dim = min(cos.shape[-1], q.shape[2] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, (*cos.shape[:1], half_dim), q.device, torch.float32)
