"""Weights of one byte for the cpu backend: `y = (x @ values.T) * scale`, activations bfloat16.

Each row of a weight becomes whole numbers up to 127 and one scale, when packed. A product of few rows waits for the
weight to be read, and a loop of ours widens it in registers; for more rows the weight is widened to bfloat16 first,
which holds every value exactly. Activations stay as they are: a language model has tokens with outliers that a byte a
value cannot hold.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.numba_kernel import (
    ANY_ORDER,
    IN_ORDER,
    Loop,
    common_dtype,
    exp,
    narrow,
    numbers,
    share,
    signed_bytes,
    values,
    widen,
)
from octavo.kernels.cpu.sample import draw

LARGEST = 127
FLOOR = 2.0**-100  # a row with nothing larger is zeros
ROWS_AT_ONCE = 4096  # of a weight, while it is quantised
FEW_ROWS = 8  # of x: up to here widening in registers is the quicker way
TILE = 4  # rows of x that share a pass over a row of the weight


class Int8Weight(NamedTuple):
    values: Tensor  # int8 [out_features, in_features]
    scale: Tensor  # bfloat16 [out_features]: what a value of 1 stands for


def pack(weight: Tensor) -> Int8Weight:
    """A weight `[out_features, in_features]`, each row rounded to 255 steps."""
    values, scales = zip(*(_quantise(rows.float()) for rows in weight.split(ROWS_AT_ONCE)), strict=True)
    return Int8Weight(torch.cat(values), torch.cat(scales))


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The scale is rounded first, so that the values make up for it; a row with a NaN has a NaN for scale."""
    scale = (rows.abs().amax(1).clamp(min=FLOOR) / LARGEST).bfloat16()
    return (rows / scale.float().unsqueeze(1)).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


@Loop
def _product(fields):
    x, scale, bias, residual, y = values(fields, 0, 5)
    (weight,) = signed_bytes(fields, 5, 1)
    rows, outputs, inputs, has_bias, has_gelu, has_residual = numbers(fields, 6, 6)
    first, last = share(outputs)
    tiles = 1 if rows == 1 else (rows + TILE - 1) // TILE * TILE
    wide = np.zeros((tiles, inputs), np.float32)  # zeros behind the last row
    for r in range(rows):
        for i in range(inputs):
            wide[r, i] = widen(x[r * inputs + i])
    products = np.empty(tiles, np.float32)
    for o in range(first, last):
        if rows == 1:
            products[0] = _dot(wide, weight, o * inputs)
        else:
            for r in range(0, rows, TILE):
                products[r], products[r + 1], products[r + 2], products[r + 3] = _dots(wide, r, weight, o * inputs)
        for r in range(rows):
            value = products[r] * widen(scale[o])
            if has_bias:
                value += widen(bias[o])
            if has_gelu:
                value = _gelu(value)
            if has_residual:
                value += widen(residual[r * outputs + o])
            y[r * outputs + o] = narrow(value, x[0])


@njit(fastmath=IN_ORDER)
def _gelu(x):
    """The tanh form, with tanh(u) = 1 - 2 / (e^2u + 1)."""
    u = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1) + exp(np.float32(-2) * u))


@njit(fastmath=ANY_ORDER)
def _dot(x, weight, start):
    total = np.float32(0)
    for i in range(x.shape[1]):
        total += x[0, i] * np.float32(weight[start + i])
    return total


@njit(fastmath=ANY_ORDER)
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


def linear(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(x @ weight.T + bias) + residual`, x and y bfloat16, weight packed: see the reference."""
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', not {activation!r}")
    if len(x) <= FEW_ROWS:
        return _few_rows(x, weight, bias, activation, residual)
    y = F.linear(x, weight.values.bfloat16()).mul_(weight.scale)
    if bias is not None:
        y += bias
    if activation is not None:
        y = F.gelu(y, approximate="tanh")
    return y if residual is None else y + residual


def _few_rows(
    x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    x, y = x.contiguous(), x.new_empty(len(x), len(weight.values))
    given = [bias, None if residual is None else residual.contiguous()]
    more = [x if tensor is None else tensor for tensor in given]  # x in place of what is not read
    dtype = common_dtype(x, weight.scale, *more)
    sizes = len(x), *weight.values.shape, bias is not None, activation is not None, residual is not None
    _product(dtype, weight.values.numel(), x, weight.scale, *more, y, weight.values, *sizes)
    return y


def lm_head_sample(hidden: Tensor, weight: Int8Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters."""
    return draw(linear(hidden, weight), temperature, seeds, positions)
