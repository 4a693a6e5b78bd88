"""K-quants: blocks of 256 values, parts of which have scales of their own, whole numbers times the block's scale.

A part is 32 values, a block of prepared x. A loop over the eight parts keeps the code short; what all parts of a panel
are multiplied by is computed before it. The bits of a value lie in two or three places of the block, described at
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.panels import steps
from octavo.kernels.cpu.panels.steps import Sums

PARTS = 8
UNROLLED_ROWS = 4  # of x, up to which two parts are written out, their shifts constants; long where products are long
LINE = 4 * vi.LANES  # bytes
Lines = Callable[[Any, Any, Any], list[Any]]  # (builder, panel, part) -> eight lines of unsigned bytes
Factors = Callable[[Any, Any], list[Any]]  # (builder, panel) -> vectors of float32, so many a part


def q4_k(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    def lines(builder: Any, panel: Any, part: Any) -> list[Any]:
        return [_bytes(builder, each) for each in _nibbles(builder, vi.offset(builder, panel, 256), part)]

    return _with_minima(builder, panels, rows, sums, planes, lines)


def q5_k(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    def lines(builder: Any, panel: Any, part: Any) -> list[Any]:
        nibbles = _nibbles(builder, vi.offset(builder, panel, 256 + 8 * LINE), part)
        fifth = _moved(builder, vi.offset(builder, panel, 256), part, 4, 0x10)
        return [_bytes(builder, builder.or_(*both)) for both in zip(nibbles, fifth, strict=True)]

    return _with_minima(builder, panels, rows, sums, planes, lines)


def q6_k(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int) -> Sums:
    def lines(builder: Any, panel: Any, part: Any) -> list[Any]:
        half, quarter = _divided(builder, part, 4)
        nibbles = _nibbles(builder, panel, _crossed(builder, part))
        high = _moved(builder, _place(builder, panel, 32 * LINE, half), builder.mul(quarter, vi.whole(2)), 4, 0x30)
        return [_bytes(builder, builder.or_(*both)) for both in zip(nibbles, high, strict=True)]

    def factors(builder: Any, panel: Any) -> list[Any]:
        d = steps.halves(builder, vi.offset(builder, panel, 52 * LINE))
        scales = [_int(builder, vi.offset(builder, panel, (48 + k) * LINE)) for k in range(4)]
        signed = [_signed_byte(builder, line, place) for line in scales for place in range(4)]
        return [builder.fmul(d, _float(builder, each)) for each in signed]

    return _in_halves(builder, panels, rows, sums, planes, lines, factors)


def _with_minima(builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int, lines: Lines) -> Sums:
    """The sums plus the products of a block whose parts have a scale and a minimum."""
    table = _table(builder, panels, _scales_and_minima)

    def part(part: Any, held: Sums) -> Sums:
        factors = [_entry(builder, own, part, 2) for own in table]
        numbers = [lines(builder, panel, part) for panel in panels]
        results: Sums = [[] for _ in panels]
        own_rows = [_block_of_x(builder, row, part, planes) for row in rows]
        for r, (x, products) in enumerate(steps.dot_products(builder, numbers, own_rows, 0, None, planes)):
            scale_of_x = steps.broadcast(builder, vi.F32, x, steps.SCALE)
            scaled_sum = steps.broadcast(builder, vi.F32, x, steps.SCALED_SUM)
            for (scale, minimum), total, own, result in zip(factors, products, held, results, strict=True):
                both = builder.fmul(scale, scale_of_x)
                value = vi.fma(builder, _float(builder, total), both, own[r])
                result.append(vi.fma(builder, minimum, scaled_sum, value))
        return results

    return _for_parts(builder, sums, part)


def _in_halves(
    builder: Any, panels: list[Any], rows: list[Any], sums: Sums, planes: int, lines: Lines, factors: Factors
) -> Sums:
    """The sums plus the products of a block whose half parts have a scale; numbers begin at -32."""
    table = _table(builder, panels, factors)

    def part(turn: Any, held: Sums) -> Sums:
        part = _crossed(builder, turn)
        scales = [_entry(builder, own, part, 2) for own in table]
        numbers = [lines(builder, panel, part) for panel in panels]
        results: Sums = [[] for _ in panels]
        own_rows = [_block_of_x(builder, row, part, planes) for row in rows]
        halves = []
        for k in (0, 1):
            own_lines, start = [own[4 * k : 4 * k + 4] for own in numbers], steps.SUMS_OF_HALVES + 4 * k
            halves.append(steps.dot_products(builder, own_lines, own_rows, 4 * k, start, planes))
        for r, ((x, first), (_, second)) in enumerate(zip(*halves, strict=True)):
            scale_of_x = steps.broadcast(builder, vi.F32, x, steps.SCALE)
            for (one, two), a, b, own, result in zip(scales, first, second, held, results, strict=True):
                both = vi.fma(builder, _float(builder, b), two, builder.fmul(_float(builder, a), one))
                result.append(vi.fma(builder, both, scale_of_x, own[r]))
        return results

    return _for_parts(builder, sums, part)


def _for_parts(builder: Any, sums: Sums, part: Callable[[Any, Sums], Sums]) -> Sums:
    """The loop over the parts, the sums in variables."""
    kind = vi.vector(vi.F32)
    places = [[_variable(builder, kind) for _ in own] for own in sums]
    together = 2 if len(sums[0]) <= UNROLLED_ROWS and vi.has_feature("avx512vnni") else 1
    _store(builder, sums, places)
    with cgutils.for_range(builder, vi.whole(PARTS // together), intp=vi.I64) as loop:
        for k in range(together):
            turn = builder.add(builder.mul(loop.index, vi.whole(together)), vi.whole(k))
            _store(builder, part(turn, [[builder.load(each) for each in own] for own in places]), places)
    return [[builder.load(each) for each in own] for own in places]


def _variable(builder: Any, kind: Any) -> Any:
    """Memory of the function, not cleared."""
    with builder.goto_entry_block():
        return builder.alloca(kind)


def _store(builder: Any, sums: Sums, places: Sums) -> None:
    for own, targets in zip(sums, places, strict=True):
        for value, target in zip(own, targets, strict=True):
            builder.store(value, target)


def _table(builder: Any, panels: list[Any], factors: Factors) -> list[Any]:
    """Addresses, one a panel, of the factors of all parts."""
    addresses = []
    for panel in panels:
        vectors = factors(builder, panel)
        memory = _variable(builder, ir.ArrayType(vi.vector(vi.F32), len(vectors)))
        address = builder.ptrtoint(memory, vi.I64)
        for k, vector in enumerate(vectors):
            vi.store(builder, vector, vi.offset(builder, address, k * LINE))
        addresses.append(address)
    return addresses


def _entry(builder: Any, table: Any, part: Any, size: int) -> list[Any]:
    """The `size` factors of a part."""
    address = _place(builder, table, 0, part, size)
    return [vi.load(builder, vi.vector(vi.F32), vi.offset(builder, address, k * LINE)) for k in range(size)]


def _scales_and_minima(builder: Any, panel: Any) -> list[Any]:
    """Scale and negated minimum of each part: 6-bit numbers in three lines, times the float16 before them."""
    d = steps.halves(builder, panel)
    lowest = builder.fneg(steps.halves(builder, vi.offset(builder, panel, 32)))
    scales, minima, rest = (_int(builder, vi.offset(builder, panel, (1 + k) * LINE)) for k in range(3))
    factors = []
    for factor, line, shift in ((d, scales, 0), (lowest, minima, 4)):
        upper = builder.or_(_bits(builder, rest, shift, 0x0F), _bits(builder, line, 2, 0x30))
        numbers = [_byte(builder, four, k) for four in (_bits(builder, line, 0, 0x3F), upper) for k in range(4)]
        factors.append([builder.fmul(factor, _float(builder, each)) for each in numbers])
    return [each for both in zip(*factors, strict=True) for each in both]


def _byte(builder: Any, line: Any, place: int) -> Any:
    """A byte of each lane as an int32."""
    zero = LINE
    places = [i for lane in range(vi.LANES) for i in (4 * lane + place, zero, zero, zero)]
    taken = ir.Constant(vi.vector(vi.I32, LINE), places)
    return builder.bitcast(builder.shuffle_vector(_bytes(builder, line), vi.constant(vi.I8, 0, LINE), taken), line.type)


def _nibbles(builder: Any, address: Any, part: Any) -> list[Any]:
    """Eight lines that two parts share: the low halves of their bytes are the even one, the high halves the odd one."""
    pair, odd = _divided(builder, part, 2)
    shift = vi.splat(builder, builder.trunc(builder.shl(odd, vi.whole(2)), vi.I32))
    mask = vi.constant(vi.I32, 0x0F0F0F0F)
    lines = _eight(builder, _place(builder, address, 0, pair, 8))
    return [builder.and_(builder.lshr(line, shift), mask) for line in lines]


def _moved(builder: Any, address: Any, bit: Any, target: int, mask: int) -> list[Any]:
    """Of eight lines of bytes the bits from `bit` on, moved to `target`, others cleared by a mask of a byte."""
    distance = builder.and_(builder.sub(bit, vi.whole(target)), vi.whole(31))
    turn, masks = vi.splat(builder, builder.trunc(distance, vi.I32)), vi.constant(vi.I32, mask * 0x01010101)
    lines = _eight(builder, address)
    return [builder.and_(vi.call(builder, "llvm.fshr.v16i32", x.type, [x, x, turn]), masks) for x in lines]


def _eight(builder: Any, address: Any) -> list[Any]:
    return [_int(builder, vi.offset(builder, address, k * LINE)) for k in range(8)]


def _int(builder: Any, address: Any) -> Any:
    return vi.load(builder, vi.vector(vi.I32), address)


def _bytes(builder: Any, line: Any) -> Any:
    return builder.bitcast(line, vi.vector(vi.I8, LINE))


def _bits(builder: Any, line: Any, shift: int, mask: int) -> Any:
    """Some bits of each byte."""
    return builder.and_(builder.lshr(line, vi.constant(vi.I32, shift)), vi.constant(vi.I32, mask * 0x01010101))


def _signed_byte(builder: Any, line: Any, place: int) -> Any:
    """A byte of each lane, its sign kept."""
    return builder.ashr(builder.shl(line, vi.constant(vi.I32, 24 - 8 * place)), vi.constant(vi.I32, 24))


def _float(builder: Any, numbers: Any) -> Any:
    return builder.sitofp(numbers, vi.vector(vi.F32))


def _place(builder: Any, address: Any, distance: int, index: Any, lines: int = 8) -> Any:
    """address + distance + index * lines, in bytes."""
    return vi.offset(builder, address, builder.add(builder.mul(index, vi.whole(lines * LINE)), vi.whole(distance)))


def _block_of_x(builder: Any, row: Any, part: Any, planes: int) -> Any:
    size = list(steps.X_BLOCK_BYTES.values())[planes - 1]
    return vi.offset(builder, row, builder.mul(part, vi.whole(size)))


def _divided(builder: Any, value: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder by a power of two."""
    return builder.lshr(value, vi.whole(by.bit_length() - 1)), builder.and_(value, vi.whole(by - 1))


def _crossed(builder: Any, part: Any) -> Any:
    """0 2 1 3 4 6 5 7 of a part: of q6_k's nibbles parts 0 and 2 share bytes, and so do 1 and 3."""
    half, quarter = _divided(builder, part, 4)
    upper, lower = _divided(builder, quarter, 2)
    swapped = builder.add(builder.mul(lower, vi.whole(2)), upper)
    return builder.add(builder.mul(half, vi.whole(4)), swapped)
