"""Weights of one byte for the cpu backend: `y = (x @ values.T) * scale`, activations bfloat16.

Each row of a weight becomes whole numbers up to 127 and one scale, when packed. A product of few rows waits for the
weight to be read and widens it in registers; for more rows the weight is widened to bfloat16 first, which holds every
value exactly. Activations stay as they are: a language model has tokens with outliers that a byte a value cannot hold.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import cpu
from octavo.kernels.cpu_sampling import draw

LARGEST = 127
FLOOR = 2.0**-100  # a row with nothing larger is zeros
ROWS_AT_ONCE = 4096  # of a weight, while it is quantised
FEW_ROWS = 8  # of x: up to here widening in registers is the quicker way
STEP = 32  # its kernel reads so many values at a time, past the end of other rows


class Int8Weight(NamedTuple):
    values: Tensor  # int8 [out_features, in_features]
    scale: Tensor  # bfloat16 [out_features]: what a value of 1 stands for


def pack(weight: Tensor) -> Int8Weight | Tensor:
    """A weight `[out_features, in_features]`, each row rounded to 255 steps; that of a norm keeps its values."""
    if weight.ndim == 1:
        return cpu.pack(weight)
    values, scales = zip(*(_quantise(rows.float()) for rows in weight.split(ROWS_AT_ONCE)), strict=True)
    return Int8Weight(torch.cat(values), torch.cat(scales))


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The scale is rounded first, so that the values make up for it; a row with a NaN has a NaN for scale."""
    scale = (rows.abs().amax(1).clamp(min=FLOOR) / LARGEST).bfloat16()
    return (rows / scale.float().unsqueeze(1)).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


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
    if len(x) <= FEW_ROWS and x.shape[1] % STEP == 0:
        y = torch._weight_int8pack_mm(x.contiguous(), *weight)
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
