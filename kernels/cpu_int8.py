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

from octavo.kernels.cpu_loops import ANY_ORDER, Loop, narrow, numbers, share, signed_bytes, values, widen
from octavo.kernels.cpu_sampling import draw

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
    x, scale, y = values(fields, 0, 3)
    (weight,) = signed_bytes(fields, 3, 1)
    rows, outputs, inputs = numbers(fields, 4, 3)
    first, last = share(outputs)
    tiles = 1 if rows == 1 else (rows + TILE - 1) // TILE * TILE
    wide = np.zeros((tiles, inputs), np.float32)  # zeros behind the last row
    for r in range(rows):
        for i in range(inputs):
            wide[r, i] = widen(x[r * inputs + i])
    for o in range(first, last):
        factor = widen(scale[o])
        if rows == 1:
            y[o] = narrow(_dot(wide, weight, o * inputs) * factor, x[0])
        else:
            for r in range(0, rows, TILE):
                for t, product in enumerate(_dots(wide, r, weight, o * inputs)):
                    if r + t < rows:
                        y[(r + t) * outputs + o] = narrow(product * factor, x[0])


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
    if len(x) <= FEW_ROWS and x.dtype == weight.scale.dtype:
        x, y = x.contiguous(), x.new_empty(len(x), len(weight.values))
        _product(x.dtype, weight.values.numel(), x, weight.scale, y, weight.values, len(x), *weight.values.shape)
    else:
        y = F.linear(x, weight.values.bfloat16()).mul_(weight.scale)
    if bias is not None:
        y += bias
    if activation is not None:
        y = F.gelu(y, approximate="tanh")
    return y if residual is None else y + residual


def lm_head_sample(hidden: Tensor, weight: Int8Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters."""
    return draw(linear(hidden, weight), temperature, seeds, positions)
