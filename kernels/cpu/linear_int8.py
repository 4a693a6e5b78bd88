"""Products with weights of one byte a value: `y = (x @ values.T) * scale`.

A product of few rows waits for the weight to be read, so a loop of ours widens the bytes in registers. For more rows
the weight is widened first to the dtype of x, which holds every value exactly. Activations stay as they are: a
language model has tokens with outliers that a byte a value cannot hold.
"""

import numpy as np
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.activation import gelu
from octavo.kernels.reference import ACTIVATIONS
from octavo.kernels.weights import Int8Weight

FEW_ROWS = 8  # of x: up to here widening in registers is the quicker way
TILE = 4  # rows of x that share a pass over a row of the weight


@nk.cpu_kernel("vvvv b qqqqq")
def _product(fields):
    x, scale, bias, y = nk.float_ptrs(fields, 0, 4)
    (weight,) = nk.int8_ptrs(fields, 4, 1)
    rows, outputs, inputs, has_bias, has_gelu = nk.int_args(fields, 5, 5)
    first, last = nk.thread_range(outputs)
    tiles = 1 if rows == 1 else (rows + TILE - 1) // TILE * TILE
    wide = np.zeros((tiles, inputs), np.float32)  # zeros behind the last row
    for r in range(rows):
        for i in range(inputs):
            wide[r, i] = nk.to_float32(x[r * inputs + i])
    products = np.empty(tiles, np.float32)
    for o in range(first, last):
        if rows == 1:
            products[0] = _dot(wide, weight, o * inputs)
        else:
            for r in range(0, rows, TILE):
                products[r], products[r + 1], products[r + 2], products[r + 3] = _dots(wide, r, weight, o * inputs)
        for r in range(rows):
            value = products[r] * nk.to_float32(scale[o])
            if has_bias:
                value += nk.to_float32(bias[o])
            if has_gelu:
                value = gelu(value)
            y[r * outputs + o] = nk.from_float32(value, x[0])


@njit(fastmath=nk.FASTMATH_REASSOC)
def _dot(x, weight, start):
    total = np.float32(0)
    for i in range(x.shape[1]):
        total += x[0, i] * np.float32(weight[start + i])
    return total


@njit(fastmath=nk.FASTMATH_REASSOC)
def _dots(x, r, weight, start):
    """The products of `TILE` rows of x with one row of the weight."""
    a = b = c = d = np.float32(0)
    for i in range(x.shape[1]):
        value = np.float32(weight[start + i])
        a += x[r, i] * value
        b += x[r + 1, i] * value
        c += x[r + 2, i] * value
        d += x[r + 3, i] * value
    return a, b, c, d


def linear_int8(x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: str | None) -> Tensor:
    """`activation(x @ weight.T + bias)` for a weight of one byte a value: see `reference.linear`."""
    if len(x) <= FEW_ROWS:
        return _few_rows(x, weight, bias, activation)
    y = F.linear(x, weight.values.to(x.dtype)).mul_(weight.scale)
    if bias is not None:
        y += bias
    return ACTIVATIONS[activation](y)


def _few_rows(x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: str | None) -> Tensor:
    x, y, scale = x.contiguous(), x.new_empty(len(x), len(weight.values)), weight.scale.to(x.dtype)
    given = x if bias is None else bias  # an absent bias is passed as x: the loop never reads it
    sizes = len(x), *weight.values.shape, bias is not None, activation == "gelu"
    _product(nk.common_dtype(x, scale, given), weight.values.numel(), x, scale, given, y, weight.values, *sizes)
    return y if activation == "gelu" else ACTIVATIONS[activation](y)
