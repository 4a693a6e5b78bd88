"""Norms on a CPU, with and without the sum that goes before them: one pass over a row."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk


@njit(fastmath=nk.FASTMATH_CONTRACT)
def _add(x, residual, total, start, dim):
    for i in range(start, start + dim):
        total[i] = nk.from_float32(nk.to_float32(x[i]) + nk.to_float32(residual[i]), x[i])


@nk.cpu_kernel("vvvvvv qqqqqq d")
def _layer_norm(fields):
    x, residual, total, weight, bias, out = nk.float_ptrs(fields, 0, 6)
    rows, dim, heads, stride, adds, has_bias = nk.int_args(fields, 6, 6)
    (eps,) = nk.float_args(fields, 12, 1)
    first, last = nk.thread_range(rows)
    for row in range(first, last):
        start, place = row // heads * stride + row % heads * dim, row * dim
        if adds:
            _add(x, residual, total, start, dim)
        mean, squares = np.float64(0), np.float32(0)  # a mean of float32 would be off by what small deviations are
        for i in range(start, start + dim):
            mean += nk.to_float32(total[i])
        mean /= dim
        for i in range(start, start + dim):
            deviation = np.float32(nk.to_float32(total[i]) - mean)
            squares += deviation * deviation
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            normal = np.float32(nk.to_float32(total[start + i]) - mean) * factor
            shift = nk.to_float32(bias[i]) if has_bias else np.float32(0)
            out[place + i] = nk.from_float32(normal * nk.to_float32(weight[i]) + shift, x[i])


@nk.cpu_kernel("vvvvv qqqqq d")
def _rms_norm(fields):
    x, residual, total, weight, out = nk.float_ptrs(fields, 0, 5)
    rows, dim, heads, stride, adds = nk.int_args(fields, 5, 5)
    (eps,) = nk.float_args(fields, 10, 1)
    first, last = nk.thread_range(rows)
    for row in range(first, last):
        start, place = row // heads * stride + row % heads * dim, row * dim
        if adds:
            _add(x, residual, total, start, dim)
        squares = np.float32(0)
        for i in range(start, start + dim):
            squares += nk.to_float32(total[i]) * nk.to_float32(total[i])
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            out[place + i] = nk.from_float32(nk.to_float32(total[start + i]) * factor * nk.to_float32(weight[i]), x[i])


def _normalise(
    kernel: nk.Kernel, x: Tensor, residual: Tensor | None, *parameters: Tensor, numbers: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """The norm of x, or of the sum of x and the residual stream, and what was normalised; numbers: the kernel's last.

    Where nothing is added, x may be `[num_tokens, num_heads, dim]`, a view of rows that hold more than its heads.
    """
    adds, dim = residual is not None, x.shape[-1]
    rows = nk.rows_of_heads(x) if x.ndim == 3 and not adds else x.contiguous().view(-1, 1, dim)
    added = rows if residual is None else residual.contiguous()  # without a residual the kernel never reads it
    out = x.new_empty(x.shape)
    total = torch.empty_like(out) if adds else rows
    sizes = rows.shape[0] * rows.shape[1], dim, rows.shape[1], rows.stride(0), adds
    dtype = nk.common_dtype(rows, added, *parameters)
    kernel(dtype, x.numel(), rows, added, total, *parameters, out, *sizes, *numbers)
    return out, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`: see the reference."""
    shift = weight if bias is None else bias  # without a bias the kernel never reads it
    return _normalise(_layer_norm, x, None, weight, shift, numbers=(bias is not None, eps))[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    shift = weight if bias is None else bias
    return _normalise(_layer_norm, x, residual, weight, shift, numbers=(bias is not None, eps))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`: see the reference."""
    return _normalise(_rms_norm, x, None, weight, numbers=(eps,))[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    return _normalise(_rms_norm, x, residual, weight, numbers=(eps,))
