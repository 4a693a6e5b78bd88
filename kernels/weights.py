"""Weight formats. The type of a weight says how its values are stored; `dequantise` says what they stand for.

A weight is a dense tensor `[out_features, in_features]`, in a backend's own layout perhaps, or one of the types below.
Every op that takes a weight takes each of them; a model may mix them tensor by tensor. To add a format: its type, its
entry in `FORMATS`, its case in `dequantise`, and in each backend that has a kernel for it an entry in the table of that
backend's `linear`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

INT8_LARGEST = 127
INT8_FLOOR = 2.0**-100  # a row with nothing larger is zeros
ROWS_AT_ONCE = 4096  # of a weight, while it is quantised


class Int8Weight(NamedTuple):
    """A byte a value and a scale a row: row o stands for `values[o] * scale[o]`."""

    values: Tensor  # int8 [out_features, in_features], within +-127
    scale: Tensor  # bfloat16 [out_features]


Weight: TypeAlias = Tensor | Int8Weight


def dequantise(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The plain tensor `[out_features, in_features]` that a weight stands for, in `dtype` (a dense weight's own)."""
    if isinstance(weight, Int8Weight):
        dtype = dtype or weight.scale.dtype
        return weight.values.to(dtype) * weight.scale.to(dtype).unsqueeze(1)
    dense = weight.to_dense() if weight.is_mkldnn else weight
    return dense if dtype is None else dense.to(dtype)


def quantise(weight: Tensor, format: str) -> Weight:
    """A dense weight `[out_features, in_features]` in the format of that name; ValueError where there is none."""
    if format not in FORMATS:
        raise ValueError(f"weights must be auto or one of {', '.join(FORMATS)}, not {format!r}")
    return FORMATS[format](weight)


def _int8(weight: Tensor) -> Int8Weight:
    values, scales = zip(*(_int8_rows(rows.float()) for rows in weight.split(ROWS_AT_ONCE)), strict=True)
    return Int8Weight(torch.cat(values), torch.cat(scales))


def _int8_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The scale is rounded first, so that the values make up for it; a row with a NaN has a NaN for scale."""
    scale = (rows.abs().amax(1).clamp(min=INT8_FLOOR) / INT8_LARGEST).bfloat16()
    return (rows / scale.float().unsqueeze(1)).round().clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8), scale


FORMATS: dict[str, Callable[[Tensor], Weight]] = {"int8": _int8}
