"""Formats of weights in panels: how the bytes of 16 outputs lie, and what a block of inputs adds to their sums.

A panel is a row of blocks. In a block each line of 64 bytes holds the same few inputs of all 16 outputs: 1 float32, 2
bfloat16, 4 bytes or 8 nibbles, so that one load fills a register with them. To add a format that files hold: its size
(weights.py), and `add`; kernels/README.md has an example.
"""

from collections.abc import Callable, Sequence
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


def _q5_0(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    least = [builder.fmul(steps.halves(builder, w), vi.constant(vi.F32, -16.0)) for w in panels]
    return _five_bits(builder, panels, rows, sums, planes, 32, least)


def _q5_1(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    least = [steps.halves(builder, vi.offset(builder, w, 32)) for w in panels]
    return _five_bits(builder, panels, rows, sums, planes, 64, least)


def _five_bits(
    builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int, place: int, least: list[Any]
) -> Sums:
    """least: of each output, what the number 0 stands for; place: of the numbers in a block of a panel."""
    lines = [steps.five_bits(builder, vi.offset(builder, w, place)) for w in panels]
    sums = steps.whole_numbers(builder, panels, lines, rows, None, sums, planes)
    return steps.fused(builder, least, rows, steps.SCALED_SUM, sums)


DENSE = [
    Format("float32", 8, 512, "float32", 32, _float32),
    Format("float16", 8, 256, "float32", 32, _float16),
    Format("bfloat16", 8, 256, "float32", 32, _bfloat16_widened),
    Format("bfloat16", 8, 256, "bfloat16", 16, _bfloat16),
]
FORMATS = {(format.name, format.activations): format for format in DENSE}
SIZES = {format.name: (format.block, format.panel_bytes) for format in DENSE}
LAYOUTS: dict[str, tuple[tuple[int, int], ...]] = {}  # of formats that files hold


def add(name: str, layout: tuple[tuple[int, int], ...], accumulate: Callable[..., Sums]) -> None:
    """Give a format of `weights.BLOCK_FORMATS` its product.

    layout: the fields of a block of the file in their order, each its bytes and how many of them stay together when
    those of 16 outputs are laid side by side: 2 for a float16, 4 for a lane of a line. accumulate: as in `Format`,
    with the number of bytes of a value of x as `planes`.
    """
    values, own_bytes, _ = BLOCK_FORMATS[name]
    LAYOUTS[name], SIZES[name] = layout, (values, vi.LANES * own_bytes)
    for planes, (activations, size) in enumerate(steps.X_BLOCK_BYTES.items(), start=1):
        x_bytes = values // ACTIVATION_BLOCK * size
        FORMATS[name, activations] = Format(
            name, *SIZES[name], activations, x_bytes, partial(accumulate, planes=planes)
        )


SCALE, SCALE_AND_MINIMUM = ((2, 2),), ((2, 2), (2, 2))
add("q8_0", (*SCALE, (32, 4)), _q8_0)
add("q4_0", (*SCALE, (16, 4)), _q4_0)
add("q4_1", (*SCALE_AND_MINIMUM, (16, 4)), _q4_1)
add("q5_0", (*SCALE, (4, 4), (16, 4)), _q5_0)
add("q5_1", (*SCALE_AND_MINIMUM, (4, 4), (16, 4)), _q5_1)
add("q4_k", (*SCALE_AND_MINIMUM, (12, 4), (128, 4)), k_quants.q4_k)
add("q5_k", (*SCALE_AND_MINIMUM, (12, 4), (32, 4), (128, 4)), k_quants.q5_k)
add("q6_k", ((128, 4), (64, 4), (16, 4), *SCALE), k_quants.q6_k)


def format_for(name: str, dtype: torch.dtype) -> Format:
    """The format of that name for x of a dtype.

    Blocks of bytes and nibbles take x of 16 bits as bytes, and float32 as 15 bits in two bytes; bfloat16 is multiplied
    as it is where the machine can.
    """
    if (name, "int8") in FORMATS:
        return FORMATS[name, "int15" if dtype is torch.float32 else "int8"]
    has_pairs = name == "bfloat16" and dtype is torch.bfloat16 and vi.has_feature("avx512bf16")
    return FORMATS[name, "bfloat16" if has_pairs else "float32"]


def instructions(names: Sequence[str], dtype: torch.dtype) -> str:
    """What multiplies weights of these formats with x of a dtype here, by the name that people know."""
    activations = {format_for(name, dtype).activations for name in names if name in SIZES}
    if activations & steps.X_BLOCK_BYTES.keys() and vi.has_feature("avx512vnni"):
        return "AVX-512 VNNI"
    if "bfloat16" in activations:
        return "AVX-512 BF16"
    wide = {"avx512f": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
    return next((name for feature, name in wide.items() if vi.has_feature(feature)), "no vectors known")
