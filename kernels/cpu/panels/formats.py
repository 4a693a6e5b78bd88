"""Formats of weights in panels: how the bytes of 16 outputs lie, and what a block of inputs adds to their sums.

A panel is a row of blocks. In a block each line of 64 bytes holds the same few inputs of all 16 outputs: 1 float32, 2
bfloat16, 4 bytes or 8 nibbles, so that one load fills a register with them. To add a format: its size, its
`accumulate`, and how it is packed (pack.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from octavo.kernels.cpu import vector_ir as vi

Sums = list[list[Any]]  # [panel][row], vectors of 16 float32
Accumulate = Callable[[Any, list[Any], list[Any], Sums], Sums]


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
        sums = _fused(builder, lines, rows, 4 * k, sums)
    return sums


def _float16(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    for k in range(8):
        halves = [vi.load(builder, vi.vector(vi.F16), vi.offset(builder, w, 32 * k)) for w in panels]
        sums = _fused(builder, [vi.widened(builder, each) for each in halves], rows, 4 * k, sums)
    return sums


def _bfloat16_widened(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    """For activations of float32, and for machines without products of bfloat16."""
    for k in range(4):
        pairs = [vi.load(builder, vi.vector(vi.I32), vi.offset(builder, w, 64 * k)) for w in panels]
        both = [vi.halves_of(builder, pair) for pair in pairs]
        for place in (0, 1):
            sums = _fused(builder, [each[place] for each in both], rows, 8 * k + 4 * place, sums)
    return sums


def _fused(builder: Any, lines: list[Any], rows: list[Any], distance: int, sums: Sums) -> Sums:
    """The sums plus a line of each panel times one float32 of each row."""
    return _multiplied(builder, lines, rows, sums, vi.fma, lambda x: _broadcast(builder, vi.F32, x, distance))


def _multiplied(builder: Any, lines: list[Any], rows: list[Any], sums: Sums, multiply: Any, value_of: Any) -> Sums:
    """Row after row, so that few broadcast values are alive beside the sums."""
    results: Sums = [[] for _ in lines]
    for r, x in enumerate(rows):
        value = value_of(x)
        for line, own, result in zip(lines, sums, results, strict=True):
            result.append(multiply(builder, line, value, own[r]))
    return results


def _bfloat16(builder: Any, panels: list[Any], rows: list[Any], sums: Sums) -> Sums:
    wide = vi.vector(vi.BF16, 2 * vi.LANES)
    for k in range(4):
        lines = [vi.load(builder, wide, vi.offset(builder, w, 64 * k)) for w in panels]
        distance = 4 * k
        sums = _multiplied(
            builder, lines, rows, sums, vi.dot_bfloat16,
            lambda x, distance=distance: builder.bitcast(_broadcast(builder, vi.I32, x, distance), wide),
        )  # fmt: skip
    return sums


# A block of prepared x for weights of bytes and nibbles: float32 scale d, float32 d * sum, int32 -128 * sum, int32
# -8 * sum, then 32 int8. The sums make up for weights being stored without a sign. Where x has two bytes a value, the
# high ones come first, and a value is 128 * high + low.
SCALE, SCALED_SUM, SUM_OF_BYTES, SUM_OF_NIBBLES, BYTES = 0, 4, 8, 12, 16
X_BLOCK_BYTES = {"int8": 48, "int15": 80}


def _q8_0(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [[_bytes(builder, vi.offset(builder, w, 32 + 64 * k)) for k in range(8)] for w in panels]
    return _whole_numbers(builder, panels, lines, rows, SUM_OF_BYTES, sums, planes)


def _q4_0(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [_nibbles(builder, vi.offset(builder, w, 32)) for w in panels]
    return _whole_numbers(builder, panels, lines, rows, SUM_OF_NIBBLES, sums, planes)


def _q4_1(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    lines = [_nibbles(builder, vi.offset(builder, w, 64)) for w in panels]
    sums = _whole_numbers(builder, panels, lines, rows, None, sums, planes)
    minima = [_scales(builder, vi.offset(builder, w, 32)) for w in panels]
    return _fused(builder, minima, rows, SCALED_SUM, sums)


def _whole_numbers(
    builder: Any, panels: list[Any], lines: list[list[Any]], rows: list[Any], start: int | None, sums: Sums, planes: int
) -> Sums:
    """The sums plus, in each panel, its scales times the products of eight lines of unsigned bytes with numbers of x.

    start: where x holds what the products begin with; None where that is 0. planes: bytes of a number. Row after row,
    because all lines stay in registers.
    """
    scales = [_scales(builder, w) for w in panels]
    results: Sums = [[] for _ in panels]
    for r, x in enumerate(rows):
        products = [vi.constant(vi.I32, 0) for _ in panels]
        for plane in range(planes):
            if plane:
                products = [builder.shl(total, vi.constant(vi.I32, 7)) for total in products]
            if start is not None and plane == planes - 1:
                first = _broadcast(builder, vi.I32, x, start)
                products = [builder.add(total, first) for total in products]
            for k in range(8):
                value = _broadcast(builder, vi.I32, x, BYTES + 32 * plane + 4 * k)
                four = builder.bitcast(value, vi.vector(vi.I8, 4 * vi.LANES))
                products = [
                    vi.dot_bytes(builder, total, own[k], four) for total, own in zip(products, lines, strict=True)
                ]
        scale_of_x = _broadcast(builder, vi.F32, x, SCALE)
        for scale, total, own, result in zip(scales, products, sums, results, strict=True):
            both = builder.fmul(scale, scale_of_x)
            result.append(vi.fma(builder, builder.sitofp(total, vi.vector(vi.F32)), both, own[r]))
    return results


def _broadcast(builder: Any, kind: Any, x: Any, distance: int) -> Any:
    return vi.splat(builder, vi.load(builder, kind, vi.offset(builder, x, distance)))


def _scales(builder: Any, address: Any) -> Any:
    return vi.widened(builder, vi.load(builder, vi.vector(vi.F16), address))


def _bytes(builder: Any, address: Any) -> Any:
    return vi.load(builder, vi.vector(vi.I8, 4 * vi.LANES), address)


def _nibbles(builder: Any, address: Any) -> list[Any]:
    """Eight lines of bytes: the low halves of four lines, which are the first 16 inputs, then the high ones."""
    raw = [vi.load(builder, vi.vector(vi.I32), vi.offset(builder, address, 64 * k)) for k in range(4)]
    shifted = [builder.lshr(each, vi.constant(vi.I32, 4)) for each in raw]
    mask = vi.constant(vi.I32, 0x0F0F0F0F)
    return [builder.bitcast(builder.and_(each, mask), vi.vector(vi.I8, 4 * vi.LANES)) for each in raw + shifted]


def _formats() -> dict[tuple[str, str], Format]:
    table = [
        Format("float32", 8, 512, "float32", 32, _float32),
        Format("float16", 8, 256, "float32", 32, _float16),
        Format("bfloat16", 8, 256, "float32", 32, _bfloat16_widened),
        Format("bfloat16", 8, 256, "bfloat16", 16, _bfloat16),
    ]
    for planes, (activations, size) in enumerate(X_BLOCK_BYTES.items(), start=1):
        for name, panel_bytes, accumulate in (("q8_0", 544, _q8_0), ("q4_0", 288, _q4_0), ("q4_1", 320, _q4_1)):
            table.append(Format(name, 32, panel_bytes, activations, size, partial(accumulate, planes=planes)))
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
