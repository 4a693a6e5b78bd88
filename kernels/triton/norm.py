"""layer_norm, rms_norm, and both with the residual add fused in front.

    layer_norm  (x - mean) / sqrt(var + eps) * weight + bias      rms_norm  x / sqrt(mean(x^2) + eps) * weight

One program a row, which is a token or one of its heads: it is read once into registers, padded to a power of two, and
reduced twice (the mean, then the squares of what is left; no difference of large sums). The fused forms first round
x + residual to its dtype, as it is stored, and normalise what they stored: `add_layer_norm` gives the bits of an add
followed by `layer_norm`.
Sums in float32; x and residual may have strided rows, of every tensor only the last dimension must be contiguous.
https://arxiv.org/abs/1607.06450 and https://arxiv.org/abs/1910.07467
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import FLOATS, check_alike


@triton.jit
def _norm_kernel(
    y_ptr,
    sum_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    stride_x,
    stride_head,
    stride_residual,
    eps,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    mask = column < DIM
    start = row * stride_x
    if NUM_HEADS > 1:
        start = row // NUM_HEADS * stride_x + row % NUM_HEADS * stride_head
    x = tl.load(x_ptr + start + column, mask, 0.0).to(tl.float32)  # [TILE]
    if residual_ptr is not None:
        x += tl.load(residual_ptr + row * stride_residual + column, mask, 0.0).to(tl.float32)
        stored = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * DIM + column, stored, mask)
        x = stored.to(tl.float32)
    if CENTER:
        x = tl.where(mask, x - tl.sum(x) / DIM, 0.0)
    deviation = tl.sqrt_rn(tl.sum(x * x) / DIM + eps)
    y = x * tl.div_rn(1.0, deviation) * tl.load(weight_ptr + column, mask, 0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask, 0.0).to(tl.float32)
    tl.store(y_ptr + row * DIM + column, y.to(y_ptr.dtype.element_ty), mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, a new tensor.

    x `[num_tokens, dim]`, or `[num_tokens, num_heads, dim]` of any strides, weight and bias (if any) `[dim]`, all of
    one dtype (float32, float16, bfloat16). ValueError otherwise, and for a dim above `launch.NORM_MAX_DIM`.
    """
    return _launch(x, None, weight, bias, eps, True)[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, a new tensor; arguments as in `layer_norm`."""
    return _launch(x, None, weight, None, eps, False)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`(layer_norm(x + residual), x + residual)`, both new, of `[num_tokens, dim]`; else as in `layer_norm`."""
    return _launch(x, residual, weight, bias, eps, True)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`, both new, of `[num_tokens, dim]`; else as in `layer_norm`."""
    return _launch(x, residual, weight, None, eps, False)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor]:
    _check(x, residual, weight, bias)
    dim, num_heads = x.shape[-1], x.shape[1] if x.ndim == 3 else 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    if y.numel() == 0:
        return y, total
    config = launch.norm(x.device, dim)
    _norm_kernel[(len(x) * num_heads,)](
        y,
        total,
        x,
        residual,
        weight,
        bias,
        x.stride(0),
        x.stride(1) if num_heads > 1 else None,
        0 if residual is None else residual.stride(0),
        eps,
        NUM_HEADS=num_heads,
        DIM=dim,
        CENTER=center,
        **config,
    )
    return y, total


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    if x.ndim not in (2, 3 if residual is None else 2) or x.dtype not in FLOATS:
        layout = "[num_tokens, dim]" + " or [num_tokens, num_heads, dim]" * (residual is None)
        raise ValueError(f"x must be {layout} in 16 or 32 bits, not {list(x.shape)} {x.dtype}")
    if not 0 < x.shape[-1] <= launch.NORM_MAX_DIM:
        raise ValueError(f"x must have a dim of 1 to {launch.NORM_MAX_DIM}, not {x.shape[-1]}")
    shapes = {"residual": (residual, x.shape), "weight": (weight, x.shape[-1:]), "bias": (bias, x.shape[-1:])}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    check_alike(x, x=x, residual=residual, weight=weight, bias=bias)
