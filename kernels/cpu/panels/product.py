"""The product of rows of x with a weight in panels, for every number of rows: each output the same bits in all of them.

The outputs are divided among the threads. A thread takes two panels at a time, and through them some rows of x, `SUM`
inputs after `SUM` inputs, so that what it reads again lies in its caches. Few rows read the weight once.
"""

import math
from typing import cast

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.activation import gelu, silu
from octavo.kernels.cpu.panels import prepare
from octavo.kernels.cpu.panels.formats import format_for
from octavo.kernels.cpu.panels.pack import Panels
from octavo.kernels.cpu.panels.tile import PANELS, SUM, TILE_ROWS, WIDTH, call_tile, tile_address
from octavo.kernels.weights import Stacked

ROWS = 192  # of x that go through a pair of panels together
MOST = TILE_ROWS[-1]
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_erf": 2, "relu": 3, "relu2": 4, "silu": 5}


def product(x: Tensor, weight: Panels, bias: Tensor | None, activation: str | None) -> Tensor:
    """`activation(x @ weight.T + bias)`: x `[rows, in_features]` -> `[rows, out_features]`, see `reference.linear`."""
    return stacked_product(x, Stacked((weight,)), bias, activation)


def stacked_product(x: Tensor, weight: Stacked, bias: Tensor | None, activation: str | None) -> Tensor:
    """The same for weights in panels whose outputs follow each other: x is prepared once for all that read it alike."""
    y = torch.empty(len(x), weight.out_features, dtype=nk.common_dtype(x), device=x.device)
    given = y if bias is None else bias.contiguous()  # an absent bias is never read
    prepared: dict[tuple[str, int], prepare.TileRows] = {}
    first = 0
    for part in cast(tuple[Panels, ...], weight.parts):
        format, (num_panels, blocks) = format_for(part.format, x.dtype), part.data.shape[:2]
        key = format.activations, blocks * format.block
        if key not in prepared:
            prepared[key] = prepare.rows_for_tiles(x, format, blocks)
        rows = prepared[key]
        shape = len(x), part.out_features, num_panels // PANELS, blocks
        steps = SUM // format.block, format.panel_bytes, rows.row_stride, rows.step_stride
        _product(
            nk.common_dtype(y, given), part.data.numel(), given, y, part.data, rows.data,
            tile_address(format), *shape, *steps, first, y.shape[1], bias is not None, ACTIVATIONS[activation],
        )  # fmt: skip
        first += part.out_features
    return y


@nk.cpu_kernel("vvaa qqqqqqqqqqqqq")
def _product(fields):
    bias, y = nk.float_ptrs(fields, 0, 2)
    weight, x, tile, rows, outputs, pairs, blocks = nk.int_args(fields, 2, 7)
    step, panel_bytes, x_stride, x_step, column, y_stride, has_bias, activation = nk.int_args(fields, 9, 8)
    first, last = nk.thread_range(pairs)
    out = np.empty((ROWS, WIDTH), np.float32)
    target, size = np.int64(out.ctypes.data), blocks * panel_bytes
    for start in range(0, rows, ROWS):
        count = min(ROWS, rows - start)
        for pair in range(first, last):
            out[:count] = 0
            for block in range(0, blocks, step):
                w = weight + PANELS * pair * size + block * panel_bytes
                place = x + block // step * x_step + start * x_stride
                num = min(step, blocks - block)
                for r in range(0, count, MOST):
                    call_tile(
                        tile, w, size, place + r * x_stride, x_stride, min(MOST, count - r), num, target + 4 * WIDTH * r
                    )
            num, place = min(WIDTH, outputs - WIDTH * pair), column + WIDTH * pair
            _finish(out, count, num, start * y_stride + place, place, y_stride, bias, has_bias, activation, y)
    out[0, 0] = 0  # keeps the memory until here


@njit(fastmath=nk.FASTMATH_CONTRACT)
def _finish(sums, count, num, start, column, y_stride, bias, has_bias, activation, y):
    """Write the sums of `count` rows, biased and activated, to y from `start` on; `column`: that of the first."""
    for r in range(count):
        row = start + r * y_stride
        own = sums[r]
        if has_bias:
            for i in range(num):
                own[i] += nk.to_float32(bias[column + i])
        if activation > 0:
            _activate(own, num, activation)
        for i in range(num):
            y[row + i] = nk.from_float32(own[i], y[0])


@njit(fastmath=nk.FASTMATH_CONTRACT)
def _activate(values, num, activation):
    """Apply the activation of that number (ACTIVATIONS) in place."""
    if activation == 1:
        for i in range(num):
            values[i] = gelu(values[i])
    elif activation == 2:
        for i in range(num):
            values[i] = values[i] * np.float32(0.5) * np.float32(1 + math.erf(values[i] * np.float32(0.70710678)))
    elif activation == 5:
        for i in range(num):
            values[i] = silu(values[i])
    else:
        for i in range(num):
            values[i] = values[i] if values[i] > 0 or values[i] != values[i] else np.float32(0)
            if activation == 4:
                values[i] *= values[i]
