"""Rows of x as the tiles read them: widened to float32, or blocks of bytes with a scale."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.panels import steps
from octavo.kernels.cpu.panels.formats import Format
from octavo.kernels.cpu.panels.steps import X_BLOCK_BYTES
from octavo.kernels.cpu.panels.tile import SUM, TILE_ROWS

SIZE_8, SIZE_15 = X_BLOCK_BYTES["int8"], X_BLOCK_BYTES["int15"]


class TileRows(NamedTuple):
    """Rows of x where and how the tiles read them; strides in bytes."""

    data: Tensor
    row_stride: int  # from a row to the next
    step_stride: int  # from `SUM` inputs to the next


def rows_for_tiles(x: Tensor, format: Format, blocks: int) -> TileRows:
    """x `[rows, inputs]` for products with a weight of so many blocks a panel.

    Few rows of the right type are read where they lie. Otherwise a tile's part of the rows lies in one piece: rows that
    are a large power of two apart would push each other out of the cache.
    """
    step_bytes = SUM // format.block * format.x_bytes
    rows, inputs = x.shape
    is_right = format.activations == str(x.dtype).removeprefix("torch.") and inputs == blocks * format.block
    if is_right and rows <= TILE_ROWS[-1] and x.stride(1) == 1:
        return TileRows(x, x.stride(0) * x.itemsize, step_bytes)
    x = x if x.stride(1) == 1 else x.contiguous()
    steps = -(-blocks * format.block // SUM)
    data = torch.empty(steps, rows, step_bytes, dtype=torch.uint8, device=x.device)
    KINDS[format.activations](x.dtype, x.numel(), x, data, rows, inputs, x.stride(0), steps, step_bytes)
    return TileRows(data, step_bytes, rows * step_bytes)


@nk.cpu_kernel("va qqqqq")
def _widen(fields):
    """float32, zeros behind the last input."""
    (x,) = nk.float_ptrs(fields, 0, 1)
    out, rows, inputs, x_stride, steps, _ = nk.int_args(fields, 1, 6)
    first, last = nk.thread_range(rows * steps)
    for item in range(first, last):
        step, r = item // rows, item % rows
        start, num = r * x_stride + step * SUM, min(SUM, inputs - step * SUM)
        wide = nk.float32_pointer(out + 4 * SUM * item)
        for i in range(num):
            wide[i] = nk.to_float32(x[start + i])
        for i in range(num, SUM):
            wide[i] = np.float32(0)


@nk.cpu_kernel("va qqqqq")
def _pairs(fields):
    """bfloat16 as it is, zeros behind the last input."""
    (x,) = nk.float_ptrs(fields, 0, 1)
    out, rows, inputs, x_stride, steps, _ = nk.int_args(fields, 1, 6)
    first, last = nk.thread_range(rows * steps)
    for item in range(first, last):
        step, r = item // rows, item % rows
        start, num = r * x_stride + step * SUM, min(SUM, inputs - step * SUM)
        same = nk.pointer_like(out + 2 * SUM * item, x)
        for i in range(num):
            same[i] = x[start + i]
        for i in range(num, SUM):
            same[i] = nk.from_float32(np.float32(0), x[0])


@nk.cpu_kernel("va qqqqq")
def _int8(fields):
    """Blocks of 32 with a byte a value (steps.X_BLOCK_BYTES): see `weights.round_activations`."""
    (x,) = nk.float_ptrs(fields, 0, 1)
    out, rows, inputs, x_stride, steps, step_bytes = nk.int_args(fields, 1, 6)
    first, last = nk.thread_range(rows * steps)
    for item in range(first, last):
        step, r = item // rows, item % rows
        start, num = r * x_stride + step * SUM, min(SUM, inputs - step * SUM)
        for i in range(num // 32):
            _round_8(x, start + 32 * i, out + step_bytes * item + i * SIZE_8)


@nk.cpu_kernel("va qqqqq")
def _int15(fields):
    """Blocks of 32 with two bytes a value."""
    (x,) = nk.float_ptrs(fields, 0, 1)
    out, rows, inputs, x_stride, steps, step_bytes = nk.int_args(fields, 1, 6)
    first, last = nk.thread_range(rows * steps)
    for item in range(first, last):
        step, r = item // rows, item % rows
        start, num = r * x_stride + step * SUM, min(SUM, inputs - step * SUM)
        for i in range(num // 32):
            _round_15(x, start + 32 * i, out + step_bytes * item + i * SIZE_15)


KINDS = {"float32": _widen, "bfloat16": _pairs, "int8": _int8, "int15": _int15}


def _round_block(planes: int) -> Any:
    """Make `round(x, start, address)`: 32 values of x from `start` on become a block of numbers of 1 or 2 bytes.

    A block with a value that is not finite gets a scale that is not, so that every product with it is NaN.
    """
    levels = float(np.float32(127 if planes == 1 else 127 * 128))

    @intrinsic
    def round_block(context: Any, x: Any, start: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer, start, out = arguments
            first = builder.ptrtoint(builder.gep(pointer, [start]), vi.I64)
            parts = _two_vectors(builder, signature.args[0].dtype, first)
            largest = _largest(builder, parts)
            numbers = _rounded(builder, parts, largest, levels)
            halves = [vi.call(builder, "llvm.vector.reduce.add.v16i32", vi.I32, [each]) for each in numbers]
            total = builder.add(*halves)
            scale = builder.fmul(largest, vi.F32(float(np.float32(1) / np.float32(levels))))
            vi.store(builder, scale, vi.offset(builder, out, steps.SCALE))
            scaled = builder.fmul(scale, builder.sitofp(total, vi.F32))
            vi.store(builder, scaled, vi.offset(builder, out, steps.SCALED_SUM))
            starts = [(steps.SUM_OF_BYTES, total, -128), (steps.SUM_OF_NIBBLES, total, -8)]
            starts += [(steps.SUMS_OF_HALVES + 4 * i, half, -32) for i, half in enumerate(halves)]
            for place, sum, factor in starts:
                vi.store(builder, builder.mul(sum, vi.I32(factor)), vi.offset(builder, out, place))
            for plane, halves in enumerate(_bytes_of(builder, numbers, planes)):
                for i, half in enumerate(halves):
                    place = vi.offset(builder, out, steps.BYTES + 32 * plane + vi.LANES * i)
                    vi.store(builder, builder.trunc(half, vi.vector(vi.I8)), place)
            return context.get_dummy_value()

        return types.void(x, types.int64, types.int64), generate

    return round_block


_round_block_8, _round_block_15 = _round_block(1), _round_block(2)


@njit(fastmath=False)  # else numba would let LLVM take a kernel's liberties with the rounding
def _round_8(x, start, address):
    _round_block_8(x, start, address)


@njit(fastmath=False)
def _round_15(x, start, address):
    _round_block_15(x, start, address)


def _largest(builder: Any, parts: list[Any]) -> Any:
    """The largest absolute value; NaN if there is one. Without the sign, bits are ordered as values are."""
    bits = [builder.bitcast(part, vi.vector(vi.I32)) for part in parts]
    sizes = [builder.and_(each, vi.constant(vi.I32, 0x7FFFFFFF)) for each in bits]
    peaks = vi.call(builder, "llvm.smax.v16i32", sizes[0].type, sizes)
    return builder.bitcast(vi.call(builder, "llvm.vector.reduce.smax.v16i32", vi.I32, [peaks]), vi.F32)


def _rounded(builder: Any, parts: list[Any], largest: Any, levels: float) -> list[Any]:
    """`round(value * levels / largest)`; zeros where the largest is 0 or not finite."""
    above = builder.fcmp_ordered(">", largest, vi.F32(0.0))
    usable = builder.and_(above, builder.fcmp_ordered("<", largest, vi.F32(float("inf"))))
    inverse, results = vi.splat(builder, builder.fdiv(vi.F32(levels), largest)), []
    for part in parts:
        rounded = vi.call(builder, "llvm.rint.v16f32", part.type, [builder.fmul(part, inverse)])
        whole = builder.fptosi(rounded, vi.vector(vi.I32))
        results.append(builder.select(usable, whole, vi.constant(vi.I32, 0)))
    return results


def _bytes_of(builder: Any, numbers: list[Any], planes: int) -> list[list[Any]]:
    """The planes of bytes of whole numbers: themselves, or the rounded 128th part, and what is left of it."""
    if planes == 1:
        return [numbers]
    seven = vi.constant(vi.I32, 7)
    high = [builder.ashr(builder.add(number, vi.constant(vi.I32, 64)), seven) for number in numbers]
    low = [builder.sub(number, builder.shl(each, seven)) for number, each in zip(numbers, high, strict=True)]
    return [high, low]


def _two_vectors(builder: Any, kind: Any, address: Any) -> list[Any]:
    """32 values that lie in a row, stored in that type of numba's (numba_kernel.DTYPES), as float32."""
    if kind == types.float32:
        return [vi.load(builder, vi.vector(vi.F32), vi.offset(builder, address, 64 * i)) for i in range(2)]
    places = [vi.offset(builder, address, 32 * i) for i in range(2)]
    if kind == types.int16:
        return [vi.widened(builder, vi.load(builder, vi.vector(vi.F16), place)) for place in places]
    raw = [builder.zext(vi.load(builder, vi.vector(vi.I16), place), vi.vector(vi.I32)) for place in places]
    return [builder.bitcast(builder.shl(each, vi.constant(vi.I32, 16)), vi.vector(vi.F32)) for each in raw]
