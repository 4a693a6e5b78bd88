"""linear: a matrix product whose row i depends on row i alone, with bias and activation in the epilogue.

    y = activation(x @ weight.T + bias)

The product is computed as its transpose: a tile of weights is the left operand of `tl.dot`, a tile of tokens the right
one. Tensor cores of sm_90 and sm_100 want 64 rows on the left, and a weight always has them; so one token runs on the
same instruction as four thousand. Every launch sums k in the same order: tiles of BLOCK_K from 0, one float32
accumulator, no split. In decode (up to 64 tokens) one tile holds all tokens, every weight is read once, 16 bytes a
thread, through a pipeline deep enough to keep few programs busy; in prefill tiles of tokens go in groups, so that the
group's weights stay in L2. Either way a token's bits are the same.

x may have strided rows; of every tensor only the last dimension must be contiguous. Rows of x and weight are read 16
bytes a thread where addresses and strides are multiples of 16. https://arxiv.org/abs/2511.10909
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.activations import check_activation
from octavo.kernels.triton import launch
from octavo.kernels.triton.activation import gelu, silu
from octavo.kernels.triton.checks import check_alike, check_matrix, dense_weight
from octavo.kernels.weights import Weight


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        return gelu(x)
    elif ACTIVATION == "gelu_erf":
        return x * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)))
    elif ACTIVATION == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu2":
        positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return positive * positive
    elif ACTIVATION == "silu":
        return silu(x)
    else:
        return x


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    num_tokens,
    stride_y,
    stride_x,
    stride_weight,
    OUT_FEATURES: tl.constexpr,
    IN_FEATURES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Programs walk GROUP tiles of tokens down before they step to the next tile of features.
    tiles_n: tl.constexpr = (OUT_FEATURES + BLOCK_N - 1) // BLOCK_N
    group, rest = tl.program_id(0) // (GROUP * tiles_n), tl.program_id(0) % (GROUP * tiles_n)
    height = min(tl.cdiv(num_tokens, BLOCK_M) - group * GROUP, GROUP)
    m = (group * GROUP + rest % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (rest // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = m[:, None] < num_tokens, n[:, None] < OUT_FEATURES
    m_row, n_row = m.to(tl.int64)[:, None], n.to(tl.int64)[:, None]
    x_ptrs = x_ptr + m_row * stride_x + k[None, :]
    weight_ptrs = weight_ptr + n_row * stride_weight + k[None, :]

    y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, IN_FEATURES, BLOCK_K):
        if IN_FEATURES % BLOCK_K == 0:
            x = tl.load(x_ptrs + start, m_mask, 0.0)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_ptrs + start, n_mask, 0.0)  # [BLOCK_N, BLOCK_K]
        else:
            k_mask = start + k[None, :] < IN_FEATURES
            x = tl.load(x_ptrs + start, m_mask & k_mask, 0.0)
            weight = tl.load(weight_ptrs + start, n_mask & k_mask, 0.0)
        y = tl.dot(weight, x.T, y, input_precision="ieee")

    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, n < OUT_FEATURES, 0.0).to(tl.float32)[:, None]
    y = _activated(y, ACTIVATION)
    y = y.T  # [BLOCK_M, BLOCK_N]
    mask = m_mask & (n[None, :] < OUT_FEATURES)
    tl.store(y_ptr + m_row * stride_y + n[None, :], y.to(y_ptr.dtype.element_ty), mask)


GROUP = 8  # tiles of tokens that share a tile of weights in L2


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`, a new tensor, summed in float32 and rounded once.

    x `[num_tokens, in_features]`, weight `[out_features, in_features]` dense, bias `[out_features]`, all of one dtype
    (float32, float16, bfloat16); x and weight may have strided rows. activation as in the reference.
    ValueError on anything else.
    """
    check_matrix("x", x, "[num_tokens, in_features]")
    weight = dense_weight(x, weight, "out_features")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], not {list(bias.shape)}")
    check_alike(x, x=x, bias=bias)
    check_activation(activation)
    (num_tokens, in_features), out_features = x.shape, weight.shape[0]
    y = torch.empty(num_tokens, out_features, dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return y
    config = launch.linear(x.device, x.dtype, num_tokens, out_features)
    tiles = triton.cdiv(num_tokens, config["BLOCK_M"]) * triton.cdiv(out_features, config["BLOCK_N"])
    _linear_kernel[(tiles,)](
        y,
        x,
        weight,
        bias,
        num_tokens,
        y.stride(0),
        x.stride(0),
        weight.stride(0),
        OUT_FEATURES=out_features,
        IN_FEATURES=in_features,
        ACTIVATION=activation,
        GROUP=GROUP,
        enable_fp_fusion=False,  # which epilogue multiplies and adds meet would depend on the tile
        **config,
    )
    return y
