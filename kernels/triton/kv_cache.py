"""write_kv: store this step's keys and values in their cache slots.

    k_cache[slot // block_size, slot % block_size] = k[token], the same for v, with slot = slot_mapping[token]

One program copies a stretch of one token's row `[num_kv_heads * head_dim]`, read as a flat line so that no lane is
wasted when the heads are no power of two. A slot that is negative (padding) or beyond the cache ends the program before
anything is stored. A slot becomes an int64 address at once: a pool of blocks outgrows 2^31 elements in ordinary
use. k and v may be strided views of one fused projection; of every tensor only the last dimension must be contiguous.
Values are copied, never converted: the result is exact to the bit. The slot mapping is vLLM's:
https://arxiv.org/abs/2309.06180
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_alike, check_tensor


@triton.jit(do_not_specialize=["num_slots"], do_not_specialize_on_alignment=["slot_mapping_ptr"])
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    num_slots,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_k_cache_block,
    stride_k_cache_slot,
    stride_k_cache_head,
    stride_v_cache_block,
    stride_v_cache_slot,
    stride_v_cache_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
    if slot < 0 or slot >= num_slots:
        return
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    head, dim = column // HEAD_DIM, column % HEAD_DIM
    mask = column < NUM_KV_HEADS * HEAD_DIM

    k = tl.load(k_ptr + token * stride_k_token + head * stride_k_head + dim, mask=mask)
    v = tl.load(v_ptr + token * stride_v_token + head * stride_v_head + dim, mask=mask)
    k_row = k_cache_ptr + block * stride_k_cache_block + offset * stride_k_cache_slot
    v_row = v_cache_ptr + block * stride_v_cache_block + offset * stride_v_cache_slot
    tl.store(k_row + head * stride_k_cache_head + dim, k, mask=mask)
    tl.store(v_row + head * stride_v_cache_head + dim, v, mask=mask)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing.

    k, v `[num_tokens, num_kv_heads, head_dim]`, strided views welcome; k_cache, v_cache
    `[num_blocks, block_size, num_kv_heads, head_dim]` of the same dtype; slot_mapping `[num_tokens]` int32 or int64:
    block * block_size + offset. ValueError on a wrong rank, shape, dtype, device or stride.
    """
    _check(k, v, k_cache, v_cache, slot_mapping)
    num_tokens, num_kv_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    config = launch.write_kv(k.device, num_kv_heads * head_dim)
    grid = (num_tokens, triton.cdiv(num_kv_heads * head_dim, config["TILE"]))
    _write_kv_kernel[grid](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k_cache.shape[0] * k_cache.shape[1],
        *k.stride()[:2],
        *v.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=k_cache.shape[1],
        **config,
    )


def _check(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    if k.ndim != 3:
        raise ValueError(f"k must be [num_tokens, num_kv_heads, head_dim], not {tuple(k.shape)}")
    if k_cache.ndim != 4 or k_cache.shape[2:] != k.shape[1:]:
        expected = f"[num_blocks, block_size, {k.shape[1]}, {k.shape[2]}]"
        raise ValueError(f"k_cache must be {expected}, not {tuple(k_cache.shape)}")
    for name, tensor, twin in (("v", v, k), ("v_cache", v_cache, k_cache)):
        if tensor.shape != twin.shape:
            raise ValueError(f"{name} must be shaped {tuple(twin.shape)}, not {tuple(tensor.shape)}")
    check_alike(k, k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    check_tensor("slot_mapping", slot_mapping, k.shape[:1], k.device, torch.int32, torch.int64)
