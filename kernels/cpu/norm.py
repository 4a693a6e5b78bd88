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


@nk.cpu_kernel("vvvvvv qqq d")
def _layer_norm(fields):
    x, residual, total, weight, bias, out = nk.float_ptrs(fields, 0, 6)
    rows, dim, adds = nk.int_args(fields, 6, 3)
    (eps,) = nk.float_args(fields, 9, 1)
    first, last = nk.thread_range(rows)
    for start in range(first * dim, last * dim, dim):
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
            out[start + i] = nk.from_float32(normal * nk.to_float32(weight[i]) + nk.to_float32(bias[i]), x[i])


@nk.cpu_kernel("vvvvv qqq d")
def _rms_norm(fields):
    x, residual, total, weight, out = nk.float_ptrs(fields, 0, 5)
    rows, dim, adds = nk.int_args(fields, 5, 3)
    (eps,) = nk.float_args(fields, 8, 1)
    first, last = nk.thread_range(rows)
    for start in range(first * dim, last * dim, dim):
        if adds:
            _add(x, residual, total, start, dim)
        squares = np.float32(0)
        for i in range(start, start + dim):
            squares += nk.to_float32(total[i]) * nk.to_float32(total[i])
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            out[start + i] = nk.from_float32(nk.to_float32(total[start + i]) * factor * nk.to_float32(weight[i]), x[i])


def _normalise(
    kernel: nk.Kernel, x: Tensor, residual: Tensor | None, *parameters: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The norm of x, or of the sum of x and the residual stream, and what was normalised."""
    x, adds = x.contiguous(), residual is not None
    added = x if residual is None else residual.contiguous()  # without a residual the kernel never reads it
    total, out = torch.empty_like(x) if adds else x, torch.empty_like(x)
    dtype = nk.common_dtype(x, added, *parameters)
    kernel(dtype, x.numel(), x, added, total, *parameters, out, *x.shape, adds, eps)
    return out, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`: see the reference."""
    return _normalise(_layer_norm, x, None, weight, bias, eps=eps)[0]


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    return _normalise(_layer_norm, x, residual, weight, bias, eps=eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`: see the reference."""
    return _normalise(_rms_norm, x, None, weight, eps=eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    return _normalise(_rms_norm, x, residual, weight, eps=eps)
