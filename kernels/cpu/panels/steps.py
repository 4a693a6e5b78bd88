"""What the formats' `accumulate` are made of, and how x lies where it is rounded to whole numbers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from octavo.kernels.cpu import vector_ir as vi

Sums = list[list[Any]]  # [panel][row], vectors of 16 float32
Accumulate = Callable[[Any, list[Any], list[Any], Sums], Sums]

# A block of prepared x for weights of whole numbers: float32 scale d, float32 d * sum, int32 -128 * sum, int32
# -8 * sum, int32 -32 times the sum of the first 16 values, and of the others, then 32 int8. The sums make up for
# weights being stored without a sign. Where x has two bytes a value, the high ones come first: 128 * high + low.
SCALE, SCALED_SUM, SUM_OF_BYTES, SUM_OF_NIBBLES, SUMS_OF_HALVES, BYTES = 0, 4, 8, 12, 16, 24
X_BLOCK_BYTES = {"int8": 56, "int15": 88}
CHAINS = 8  # sums of whole numbers that take turns


def fused(builder: Any, lines: list[Any], rows: list[Any], distance: int, sums: Sums) -> Sums:
    """The sums plus a line of each panel times one float32 of each row."""
    return multiplied(builder, lines, rows, sums, vi.fma, lambda x: broadcast(builder, vi.F32, x, distance))


def multiplied(builder: Any, lines: list[Any], rows: list[Any], sums: Sums, multiply: Any, value_of: Any) -> Sums:
    """Row after row, so that few broadcast values are alive beside the sums."""
    results: Sums = [[] for _ in lines]
    for r, x in enumerate(rows):
        value = value_of(x)
        for line, own, result in zip(lines, sums, results, strict=True):
            result.append(multiply(builder, line, value, own[r]))
    return results


def whole_numbers(
    builder: Any, panels: list[Any], lines: list[list[Any]], rows: list[Any], start: int | None, sums: Sums, planes: int
) -> Sums:
    """The sums plus, in each panel, its scales times the products of eight lines of unsigned bytes with numbers of x.

    start: where x holds what the products begin with; None where that is 0. planes: bytes of a number. Row after row,
    because all lines stay in registers.
    """
    factors = [halves(builder, w) for w in panels]
    results: Sums = [[] for _ in panels]
    for r, (x, products) in enumerate(dot_products(builder, lines, rows, 0, start, planes)):
        scale_of_x = broadcast(builder, vi.F32, x, SCALE)
        for scale, total, own, result in zip(factors, products, sums, results, strict=True):
            both = builder.fmul(scale, scale_of_x)
            result.append(vi.fma(builder, builder.sitofp(total, vi.vector(vi.F32)), both, own[r]))
    return results


def dot_products(
    builder: Any, lines: list[list[Any]], rows: list[Any], line: int, start: int | None, planes: int
) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each row of x and, in each panel, what is at `start` (or 0) plus the products of its lines with the row.

    line: where in the block of x the first of the lines begins. A few rows take turns, each with a sum of its own for
    each plane and panel, because the next product of a sum waits for the one before; all are whole numbers, so their
    order changes no bit.
    """
    together = max(1, CHAINS // (planes * len(lines)))
    for group in (rows[first : first + together] for first in range(0, len(rows), together)):
        starts = [start if plane == planes - 1 else None for plane in range(planes)]
        chains = [[_beginnings(builder, x, place, lines) for place in starts] for x in group]
        for k in range(len(lines[0])):
            for x, own_chains in zip(group, chains, strict=True):
                for plane in range(planes):
                    value = broadcast(builder, vi.I32, x, BYTES + 32 * plane + 4 * (line + k))
                    four = builder.bitcast(value, vi.vector(vi.I8, 4 * vi.LANES))
                    own_chains[plane] = [
                        vi.dot_bytes(builder, total, own[k], four)
                        for total, own in zip(own_chains[plane], lines, strict=True)
                    ]
        for x, own_chains in zip(group, chains, strict=True):
            yield x, [_joined(builder, totals) for totals in zip(*own_chains, strict=True)]


def _beginnings(builder: Any, x: Any, start: int | None, lines: list[list[Any]]) -> list[Any]:
    return [vi.constant(vi.I32, 0) if start is None else broadcast(builder, vi.I32, x, start) for _ in lines]


def _joined(builder: Any, planes: Sequence[Any]) -> Any:
    """128 * high + low, or the only plane."""
    high, *low = planes
    return builder.add(builder.shl(high, vi.constant(vi.I32, 7)), *low) if low else high


def broadcast(builder: Any, kind: Any, x: Any, distance: int) -> Any:
    return vi.splat(builder, vi.load(builder, kind, vi.offset(builder, x, distance)))


def halves(builder: Any, address: Any) -> Any:
    """16 float16 as float32."""
    return vi.widened(builder, vi.load(builder, vi.vector(vi.F16), address))


def bytes(builder: Any, address: Any) -> Any:
    return vi.load(builder, vi.vector(vi.I8, 4 * vi.LANES), address)


def nibbles(builder: Any, address: Any) -> list[Any]:
    """Eight lines of bytes: the low halves of four lines, which are the first 16 inputs, then the high ones."""
    raw = [vi.load(builder, vi.vector(vi.I32), vi.offset(builder, address, 64 * k)) for k in range(4)]
    shifted = [builder.lshr(each, vi.constant(vi.I32, 4)) for each in raw]
    mask = vi.constant(vi.I32, 0x0F0F0F0F)
    return [builder.bitcast(builder.and_(each, mask), vi.vector(vi.I8, 4 * vi.LANES)) for each in raw + shifted]


def five_bits(builder: Any, address: Any) -> list[Any]:
    """The same of numbers whose fifth bits, input after input, lie in a word of each output before the nibbles."""
    word, results = vi.load(builder, vi.vector(vi.I32), address), []
    for k, line in enumerate(nibbles(builder, vi.offset(builder, address, 64))):
        four = builder.and_(builder.lshr(word, vi.constant(vi.I32, 4 * k)), vi.constant(vi.I32, 15))
        spread = builder.mul(four, vi.constant(vi.I32, 0x02040810))  # bit i to bit 8 * i + 4, and others elsewhere
        fifth = builder.and_(spread, vi.constant(vi.I32, 0x10101010))
        results.append(builder.or_(line, builder.bitcast(fifth, line.type)))
    return results
