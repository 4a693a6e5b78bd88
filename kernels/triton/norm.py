"""layer_norm, rms_norm, and both with the residual add fused in front.

    layer_norm  (x - mean) / sqrt(var + eps) * weight + bias      rms_norm  x / sqrt(mean(x^2) + eps) * weight

One program a token: its row is read once into registers, padded to a power of two, and reduced twice (the mean, then
the squares of what is left; no difference of large sums). The fused forms first round x + residual to its dtype, as it
is stored, and normalise what they stored: `add_layer_norm` gives the bits of an add followed by `layer_norm`.
Sums in float32; x and residual may have strided rows, of every tensor only the last dimension must be contiguous.
https://arxiv.org/abs/1607.06450 and https://arxiv.org/abs/1910.07467
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_alike, check_matrix


@triton.jit
def _norm_kernel(
    y_ptr,
    sum_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    stride_x,
    stride_residual,
    eps,
    DIM: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)
    live = column < DIM
    x = tl.load(x_ptr + token * stride_x + column, live, 0.0).to(tl.float32)  # [TILE]
    if residual_ptr is not None:
        x += tl.load(residual_ptr + token * stride_residual + column, live, 0.0).to(tl.float32)
        stored = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + token * DIM + column, stored, live)
        x = stored.to(tl.float32)
    if CENTER:
        x = tl.where(live, x - tl.sum(x) / DIM, 0.0)
    deviation = tl.sqrt_rn(tl.sum(x * x) / DIM + eps)
    y = x * tl.div_rn(1.0, deviation) * tl.load(weight_ptr + column, live, 0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, live, 0.0).to(tl.float32)
    tl.store(y_ptr + token * DIM + column, y.to(y_ptr.dtype.element_ty), live)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, a new tensor.

    x `[num_tokens, dim]`, weight and bias `[dim]`, all of one dtype (float32, float16, bfloat16). ValueError otherwise,
    and for a dim above `launch.NORM_MAX_DIM`.
    """
    return _launch(x, None, weight, bias, eps)[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, a new tensor; arguments as in `layer_norm`."""
    return _launch(x, None, weight, None, eps)[0]


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(layer_norm(x + residual), x + residual)`, both new; residual shaped as x, the rest as in `layer_norm`."""
    return _launch(x, residual, weight, bias, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`, both new; residual shaped as x, the rest as in `layer_norm`."""
    return _launch(x, residual, weight, None, eps)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    _check(x, residual, weight, bias)
    num_tokens, dim = x.shape
    y = torch.empty(num_tokens, dim, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    if num_tokens == 0:
        return y, total
    config = launch.norm(x.device, dim)
    _norm_kernel[(num_tokens,)](
        y,
        total,
        x,
        residual,
        weight,
        bias,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        DIM=dim,
        CENTER=bias is not None,
        **config,
    )
    return y, total


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    check_matrix("x", x, "[num_tokens, dim]")
    if not 0 < x.shape[1] <= launch.NORM_MAX_DIM:
        raise ValueError(f"x must have a dim of 1 to {launch.NORM_MAX_DIM}, not {x.shape[1]}")
    shapes = {"residual": (residual, x.shape), "weight": (weight, x.shape[1:]), "bias": (bias, x.shape[1:])}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    check_alike(x, x=x, residual=residual, weight=weight, bias=bias)
