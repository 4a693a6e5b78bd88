"""Formats of weights in panels: how the bytes of 16 outputs lie, and what a block of inputs adds to their sums.

A panel is a row of blocks. In a block each line of 64 bytes holds the same few inputs of all 16 outputs: 1 float32, 2
bfloat16, 4 bytes or 8 nibbles, so that one load fills a register with them. To add a format that files hold: its size
(weights.py), its `LAYOUTS` and its `accumulate`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.panels import k_quants, steps
from octavo.kernels.cpu.panels.steps import Accumulate, Sums
from octavo.kernels.weights import ACTIVATION_BLOCK, BLOCK_FORMATS


@dataclass(frozen=True)
class Format:
    """accumulate(builder, panels, rows, sums): the sums with one block of inputs added; panels and rows are addresses
    of that block in each panel of the weight and in each row of x."""

    name: str
    block: int  # inputs
    panel_bytes: int  # of a block of a panel
    activations: str  # how x is prepared (prepare.py)
    x_bytes: int  # of a block of a row of x
    accumulate: Accumulate


def _float32(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    for k in range(8):
        lines = [vi.load(builder, vi.vector(vi.F32), vi.offset(builder, w, 64 * k)) for w in panels]
        sums = steps.fused(builder, lines, rows, 4 * k, sums)
    return sums


def _float16(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    for k in range(8):
        halves = [vi.load(builder, vi.vector(vi.F16), vi.offset(builder, w, 32 * k)) for w in panels]
        sums = steps.fused(builder, [vi.widened(builder, each) for each in halves], rows, 4 * k, sums)
    return sums


def _bfloat16_widened(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    """For activations of float32, and for machines without products of bfloat16."""
    for k in range(4):
        pairs = [vi.load(builder, vi.vector(vi.I32), vi.offset(builder, w, 64 * k)) for w in panels]
        both = [vi.halves_of(builder, pair) for pair in pairs]
        for place in (0, 1):
            sums = steps.fused(builder, [each[place] for each in both], rows, 8 * k + 4 * place, sums)
    return sums


def _bfloat16(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    wide = vi.vector(vi.BF16, 2 * vi.LANES)
    for k in range(4):
        lines = [vi.load(builder, wide, vi.offset(builder, w, 64 * k)) for w in panels]
        distance = 4 * k
        sums = steps.multiplied(
            builder, lines, rows, sums, vi.dot_bfloat16,
            lambda x, distance=distance: builder.bitcast(steps.broadcast(builder, vi.I32, x, distance), wide),
        )  # fmt: skip
    return sums


def _q8_0(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [[steps.bytes(builder, vi.offset(builder, w, 32 + 64 * k)) for k in range(8)] for w in panels]
    return steps.whole_numbers(builder, panels, lines, rows, steps.SUM_OF_BYTES, sums, planes)


def _q4_0(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [steps.nibbles(builder, vi.offset(builder, w, 32)) for w in panels]
    return steps.whole_numbers(builder, panels, lines, rows, steps.SUM_OF_NIBBLES, sums, planes)


def _q4_1(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [steps.nibbles(builder, vi.offset(builder, w, 64)) for w in panels]
    sums = steps.whole_numbers(builder, panels, lines, rows, None, sums, planes)
    minima = [steps.halves(builder, vi.offset(builder, w, 32)) for w in panels]
    return steps.fused(builder, minima, rows, steps.SCALED_SUM, sums)


# The fields of a block of a file: so many bytes, and how many of them stay together when those of 16 outputs are laid
# side by side, 2 for a float16, 4 for a lane of a line.
LAYOUTS = {
    "q8_0": ((2, 2), (32, 4)),
    "q4_0": ((2, 2), (16, 4)),
    "q4_1": ((2, 2), (2, 2), (16, 4)),
    "q4_k": ((2, 2), (2, 2), (12, 4), (128, 4)),
    "q5_k": ((2, 2), (2, 2), (12, 4), (32, 4), (128, 4)),
    "q6_k": ((128, 4), (64, 4), (16, 4), (2, 2)),
}
OF_BLOCKS = {
    "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1,
    "q4_k": k_quants.q4_k, "q5_k": k_quants.q5_k, "q6_k": k_quants.q6_k,
}  # fmt: skip


def _formats() -> dict[tuple[str, str], Format]:
    table = [
        Format("float32", 8, 512, "float32", 32, _float32),
        Format("float16", 8, 256, "float32", 32, _float16),
        Format("bfloat16", 8, 256, "float32", 32, _bfloat16_widened),
        Format("bfloat16", 8, 256, "bfloat16", 16, _bfloat16),
    ]
    for planes, (activations, size) in enumerate(steps.X_BLOCK_BYTES.items(), start=1):
        for name, accumulate in OF_BLOCKS.items():
            values, own_bytes, _ = BLOCK_FORMATS[name]
            x_bytes, whole = values // ACTIVATION_BLOCK * size, partial(accumulate, planes=planes)
            table.append(Format(name, values, vi.LANES * own_bytes, activations, x_bytes, whole))
    return {(format.name, format.activations): format for format in table}


FORMATS = _formats()
SIZES = {format.name: (format.block, format.panel_bytes) for format in FORMATS.values()}


def format_for(name: str, dtype: torch.dtype) -> Format:
    """The format of that name for x of a dtype.

    Blocks of bytes and nibbles take x of 16 bits as bytes, and float32 as 15 bits in two bytes; bfloat16 is multiplied
    as it is where the machine can.
    """
    if (name, "int8") in FORMATS:
        return FORMATS[name, "int15" if dtype is torch.float32 else "int8"]
    has_pairs = name == "bfloat16" and dtype is torch.bfloat16 and vi.has_feature("avx512bf16")
    return FORMATS[name, "bfloat16" if has_pairs else "float32"]
