"""Weights in panels of 16 outputs: made once from dense weights or from a GGUF file's blocks, read by every product."""

from typing import NamedTuple

import torch
from torch import Tensor

from octavo.kernels.cpu.panels.formats import LAYOUTS, SIZES
from octavo.kernels.cpu.panels.memory import MEMORY
from octavo.kernels.cpu.panels.tile import WIDTH
from octavo.kernels.cpu.vector_ir import LANES
from octavo.kernels.weights import BlockWeight

DENSE = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Panels(NamedTuple):
    """A weight `[out_features, in_features]` packed for the products of the cpu backend."""

    data: Tensor  # uint8 [panels, blocks, bytes of a block], zeros behind the last output and the last input
    format: str  # a key of `formats.FORMATS`
    out_features: int
    in_features: int

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain tensor that it stands for, `[out_features, in_features]`."""
        if self.format in LAYOUTS:
            return _to_blocks(self).dequantise(dtype)
        kind = next(kind for kind, name in DENSE.items() if name == self.format)
        together = 2 if kind is torch.bfloat16 else 1
        rows = (
            self.data.view(kind).reshape(len(self.data), -1, LANES, together).transpose(1, 2).flatten(2).flatten(0, 1)
        )
        dense = rows[: self.out_features, : self.in_features]
        return dense if dtype is None else dense.to(dtype)


def pack_dense(weight: Tensor) -> Panels:
    """A weight `[out_features, in_features]` of float32, float16 or bfloat16, the same values in panels."""
    (out_features, in_features), format = weight.shape, DENSE[weight.dtype]
    block, panel_bytes = SIZES[format]
    blocks, num_panels = -(-in_features // block), _num_panels(out_features)
    padded = weight
    if (num_panels * LANES, blocks * block) != tuple(weight.shape):
        padded = weight.new_zeros(num_panels * LANES, blocks * block)
        padded[:out_features, :in_features] = weight
    together = 2 if weight.dtype is torch.bfloat16 else 1
    lines = padded.reshape(num_panels, LANES, -1, together).transpose(1, 2)
    data = MEMORY.take(num_panels * blocks * panel_bytes)
    data.view(weight.dtype).view(lines.shape).copy_(lines)
    return Panels(data.view(num_panels, blocks, panel_bytes), format, out_features, in_features)


def pack_blocks(weight: BlockWeight) -> Panels:
    """The same bits as in the blocks of a GGUF file, in another order."""
    panel_bytes = SIZES[weight.format][1]
    out_features, num_panels = len(weight.blocks), _num_panels(len(weight.blocks))
    raw = weight.blocks.unflatten(1, (-1, panel_bytes // LANES))
    if (short := num_panels * LANES - out_features) > 0:
        raw = torch.cat((raw, raw.new_zeros(short, *raw.shape[1:])))
    raw = raw.unflatten(0, (num_panels, LANES)).transpose(1, 2)  # [panels, blocks, outputs, bytes]
    data = MEMORY.take(num_panels * raw.shape[1] * panel_bytes).view(num_panels, raw.shape[1], panel_bytes)
    for part, target in zip(_parts(raw, weight.format), _lines(data, weight.format), strict=True):
        target.copy_(part)
    if weight.format == "q8_0":
        data[..., 32:].bitwise_xor_(0x80)
    return Panels(data, weight.format, out_features, weight.in_features)


def empty_panels(like: Panels, out_features: int) -> Panels:
    """Panels without values yet for so many outputs, in the format and of the inputs of others."""
    data = like.data.new_empty(_num_panels(out_features), *like.data.shape[1:])
    return like._replace(data=data, out_features=out_features)


def _to_blocks(panels: Panels) -> BlockWeight:
    lines = [each.transpose(2, 3).flatten(3) for each in _lines(panels.data, panels.format)]
    if panels.format == "q8_0":
        lines[1] = lines[1].bitwise_xor(0x80)
    raw = torch.cat(lines, 3).transpose(1, 2).flatten(2).flatten(0, 1)
    return BlockWeight(raw[: panels.out_features].contiguous(), panels.format)


def _lines(data: Tensor, format: str) -> list[Tensor]:
    """Views of the fields of panels' blocks, `[panels, blocks, units, outputs, bytes of a unit]`."""
    fields = data.split([LANES * size for size, _ in LAYOUTS[format]], 2)
    units = [unit for _, unit in LAYOUTS[format]]
    return [field.unflatten(2, (-1, LANES, unit)) for field, unit in zip(fields, units, strict=True)]


def _parts(raw: Tensor, format: str) -> list[Tensor]:
    """The same fields of a file's blocks `[panels, blocks, outputs, bytes]`, in the same shape."""
    fields = raw.split([size for size, _ in LAYOUTS[format]], 3)
    units = [unit for _, unit in LAYOUTS[format]]
    return [field.unflatten(3, (-1, unit)).transpose(2, 3) for field, unit in zip(fields, units, strict=True)]


def _num_panels(out_features: int) -> int:
    """Whole tiles hold the last output."""
    return -(-out_features // WIDTH) * (WIDTH // LANES)
