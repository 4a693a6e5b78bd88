"""Norms on a CPU, with and without the sum that goes before them: one pass over a row."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.numba_kernel import (
    FASTMATH_CONTRACT,
    common_dtype,
    cpu_kernel,
    float_args,
    float_ptrs,
    from_float32,
    int_args,
    thread_range,
    to_float32,
)


@njit(fastmath=FASTMATH_CONTRACT)
def _add(x, residual, total, start, dim):
    for i in range(start, start + dim):
        total[i] = from_float32(to_float32(x[i]) + to_float32(residual[i]), x[i])


@cpu_kernel("vvvvvv qqq d")
def _layer_norm(fields):
    x, residual, total, weight, bias, out = float_ptrs(fields, 0, 6)
    rows, dim, adds = int_args(fields, 6, 3)
    (eps,) = float_args(fields, 9, 1)
    first, last = thread_range(rows)
    for start in range(first * dim, last * dim, dim):
        if adds:
            _add(x, residual, total, start, dim)
        mean, squares = np.float64(0), np.float32(0)  # a mean of float32 would be off by what small deviations are
        for i in range(start, start + dim):
            mean += to_float32(total[i])
        mean /= dim
        for i in range(start, start + dim):
            deviation = np.float32(to_float32(total[i]) - mean)
            squares += deviation * deviation
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            normal = np.float32(to_float32(total[start + i]) - mean) * factor
            out[start + i] = from_float32(normal * to_float32(weight[i]) + to_float32(bias[i]), x[i])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`: see the reference."""
    x, dtype = x.contiguous(), common_dtype(x, weight, bias)
    out = torch.empty_like(x)
    _layer_norm(dtype, x.numel(), x, x, x, weight, bias, out, *x.shape, 0, eps)
    return out


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    x, residual, dtype = x.contiguous(), residual.contiguous(), common_dtype(x, residual, weight, bias)
    out, total = torch.empty_like(x), torch.empty_like(x)
    _layer_norm(dtype, x.numel(), x, residual, total, weight, bias, out, *x.shape, 1, eps)
    return out, total


@cpu_kernel("vvvvv qqq d")
def _rms_norm(fields):
    x, residual, total, weight, out = float_ptrs(fields, 0, 5)
    rows, dim, adds = int_args(fields, 5, 3)
    (eps,) = float_args(fields, 8, 1)
    first, last = thread_range(rows)
    for start in range(first * dim, last * dim, dim):
        if adds:
            _add(x, residual, total, start, dim)
        squares = np.float32(0)
        for i in range(start, start + dim):
            squares += to_float32(total[i]) * to_float32(total[i])
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            out[start + i] = from_float32(to_float32(total[start + i]) * factor * to_float32(weight[i]), x[i])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`: see the reference."""
    x, dtype = x.contiguous(), common_dtype(x, weight)
    out = torch.empty_like(x)
    _rms_norm(dtype, x.numel(), x, x, x, weight, out, *x.shape, 0, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    x, residual, dtype = x.contiguous(), residual.contiguous(), common_dtype(x, residual, weight)
    out, total = torch.empty_like(x), torch.empty_like(x)
    _rms_norm(dtype, x.numel(), x, residual, total, weight, out, *x.shape, 1, eps)
    return out, total
