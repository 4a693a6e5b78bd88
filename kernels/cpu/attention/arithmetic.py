"""The arithmetic of attention on a CPU, as vectors: products, softmax, fold. The order of every sum stands here alone.

Addresses are int64, scratch memory is float32. Keys are packed in chunks `[head_dim, CHUNK]`, so that a lane is a key;
values in chunks `[CHUNK, vectors * 16]`, so that a lane is a dimension. An accumulator's row is a header (the maximum
score and the sum of the weights e^(score - maximum)), then the sum of the values, each times its weight.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.attention.routines import add, routine

LINE = 4 * vi.LANES  # bytes of a vector
HEADER = vi.LANES  # values
CHUNK = 64  # keys that are packed at a time: as many as the nearest cache holds

# Rows and vectors of a tile of a product, whose sums lie in registers: AVX-512 has 32, AVX 16 of half the size.
TILE_ROWS, TILE_VECTORS = ((6, 3, 1), (4, 1)) if vi.has_feature("avx512f") else ((4, 1), (1,))

AHEAD = 64  # keys: how long before its use a line is fetched; so many places behind the last are read as well
NEW, RESUME, ADD = range(3)  # modes of a product

FLOATS, WORDS = vi.vector(vi.F32), vi.vector(vi.I32)
SIZES = {vi.F32: 4, vi.BF16: 2, vi.F16: 2}  # bytes of stored values


def _tiles(builder: Any, count: Any, widths: tuple[int, ...]) -> Iterator[tuple[Any, int]]:
    """Loops that cut 0..count into tiles, each width as often as it fits: `(first index, width)` inside of each."""
    start = vi.whole(0)
    for width in widths:
        times = builder.sdiv(builder.sub(count, start), vi.whole(width))
        with cgutils.for_range(builder, times) as loop:
            yield builder.add(start, builder.mul(loop.index, vi.whole(width))), width
        start = builder.add(start, builder.mul(times, vi.whole(width)))


def _at(builder: Any, address: Any, index: Any, size: Any) -> Any:
    """The address of an item; index and size, in bytes, are ints or int64 values."""
    index, size = (vi.whole(x) if isinstance(x, int) else x for x in (index, size))
    return builder.add(address, builder.mul(index, size))


@routine("qqqqqqqqqq")
def product(
    builder: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, count: Any, out: Any, out_stride: Any,
    rows: Any, vectors: Any, mode: Any,
) -> None:  # fmt: skip
    """out[r] = the sum over k < count, ascending, of a[r, k] * b[k], for `vectors` vectors. Strides are in bytes.

    A step is one fused multiply-add, so no bit depends on the tiles. The mode says what becomes of out: `NEW` replaces
    it, `RESUME` begins the sum with what it holds, `ADD` adds the sum to it.
    """
    resumes, adds = (builder.icmp_signed("==", mode, vi.whole(each)) for each in (RESUME, ADD))
    zero = vi.constant(vi.F32, 0.0)
    for row, height in _tiles(builder, rows, TILE_ROWS):
        left = [_at(builder, a, builder.add(row, vi.whole(r)), a_stride) for r in range(height)]
        below = [_at(builder, out, builder.add(row, vi.whole(r)), out_stride) for r in range(height)]
        for first, width in _tiles(builder, vectors, TILE_VECTORS):
            right = _at(builder, b, first, LINE)
            sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(width)] for _ in range(height)]
            places = [[vi.offset(builder, _at(builder, p, first, LINE), LINE * v) for v in range(width)] for p in below]
            for own, each in zip(sums, places, strict=True):
                for total, place in zip(own, each, strict=True):
                    held = vi.load(builder, FLOATS, place)
                    builder.store(builder.select(resumes, held, zero), total)
            with cgutils.for_range(builder, count) as loop:
                line = _at(builder, right, loop.index, b_stride)
                lines = [vi.load(builder, FLOATS, vi.offset(builder, line, LINE * v)) for v in range(width)]
                for own, place in zip(sums, left, strict=True):
                    factor = vi.splat(builder, vi.load(builder, vi.F32, _at(builder, place, loop.index, 4)))
                    for total, each in zip(own, lines, strict=True):
                        builder.store(vi.fma(builder, factor, each, builder.load(total)), total)
            for own, each in zip(sums, places, strict=True):
                for total, place in zip(own, each, strict=True):
                    added = builder.fadd(vi.load(builder, FLOATS, place), builder.load(total))
                    vi.store(builder, builder.select(adds, added, builder.load(total)), place)


def pack_keys(builder: Any, kind: Any, places: Any, head_dim: Any, out: Any) -> None:
    """out[d, j] = key j's value d, for 16 keys whose addresses lie at `places`. They are turned 16 bytes at a time."""
    size = SIZES[kind]
    units = builder.sdiv(head_dim, vi.whole(16 // size))
    for unit, width in _tiles(builder, units, (4, 1)):
        keys, later = (
            [_at(builder, vi.load(builder, vi.I64, vi.offset(builder, places, 8 * j)), unit, 16) for j in lanes]
            for lanes in (range(vi.LANES), range(AHEAD, AHEAD + vi.LANES))
        )
        for key in later if width > 1 else []:
            _prefetch(builder, key)
        below = _at(builder, out, unit, 16 // size * 4 * CHUNK)
        for u in range(width):
            quarters = [vi.load(builder, vi.vector(vi.I32, 4), vi.offset(builder, key, 16 * u)) for key in keys]
            lines = [x for word in _turned(builder, quarters) for x in _widened_words(builder, kind, word)]
            for i, line in enumerate(lines):
                vi.store(builder, line, vi.offset(builder, below, 4 * CHUNK * (u * len(lines) + i)))
    with cgutils.for_range(builder, head_dim, builder.mul(units, vi.whole(16 // size))) as loop:  # where 16 do not fit
        for j in range(16):
            key = _at(builder, vi.load(builder, vi.I64, vi.offset(builder, places, 8 * j)), loop.index, size)
            place = vi.offset(builder, _at(builder, out, loop.index, 4 * CHUNK), 4 * j)
            vi.store(builder, _loaded(builder, kind, key, 1), place)


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for a cache line that will be read: any address may be given, nothing is read where there is no memory."""
    flags = [ir.Constant(vi.I32, value) for value in (0, 2, 1)]  # to read, into the second cache, data
    pointer = builder.inttoptr(address, vi.I8.as_pointer())
    vi.call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *flags])


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 4 -> 4 vectors of 16: lane j of vector i is value i of row j."""

    def mix(a: Any, b: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(vi.vector(vi.I32, len(lanes)), lanes))

    def fours(pattern: list[int]) -> list[int]:
        """The same choice in each of four groups of lanes; 16 and more mean the second vector."""
        return [lane + 4 * group for group in range(4) for lane in pattern]

    whole = []
    for i in range(4):  # rows i, i + 4, i + 8, i + 12 in a vector
        halves = [mix(rows[i + 8 * half], rows[i + 8 * half + 4], list(range(8))) for half in (0, 1)]
        whole.append(mix(halves[0], halves[1], list(range(16))))
    low, high = fours([0, 16, 1, 17]), fours([2, 18, 3, 19])
    pairs = [(mix(a, b, low), mix(a, b, high)) for a, b in (whole[:2], whole[2:])]
    first, second = fours([0, 1, 16, 17]), fours([2, 3, 18, 19])
    return [mix(a, b, chosen) for a, b in zip(*pairs, strict=True) for chosen in (first, second)]


def _widened_words(builder: Any, kind: Any, words: Any) -> list[Any]:
    """The float32 values in a vector of 32-bit words: one a word, or two of 16 bits, the first in the lower half."""
    if kind is vi.F32:
        return [words]
    if kind is vi.BF16:
        return list(vi.halves_of(builder, words))
    parts = words, builder.lshr(words, vi.constant(vi.I32, 16))
    return [_widened(builder, kind, builder.trunc(part, vi.vector(vi.I16))) for part in parts]


def _loaded(builder: Any, kind: Any, address: Any, lanes: int = vi.LANES) -> Any:
    element = vi.F32 if kind is vi.F32 else vi.I16
    return _widened(builder, kind, vi.load(builder, vi.vector(element, lanes), address))


def _widened(builder: Any, kind: Any, values: Any) -> Any:
    """Stored values as float32: float32 itself, or the bits of a half."""
    lanes = values.type.count
    if kind is vi.F32:
        return values
    if kind is vi.F16:
        return builder.fpext(builder.bitcast(values, vi.vector(vi.F16, lanes)), vi.vector(vi.F32, lanes))
    words = builder.zext(values, vi.vector(vi.I32, lanes))
    return builder.bitcast(builder.shl(words, vi.constant(vi.I32, 16, lanes)), vi.vector(vi.F32, lanes))


def pack_values(builder: Any, kind: Any, places: Any, count: Any, head_dim: Any, out: Any, out_stride: Any) -> None:
    """out[j] = the values at address j of `places`, j < count, in whole vectors; zeros behind head_dim."""
    size = SIZES[kind]
    with cgutils.for_range(builder, count) as outer:
        row = _at(builder, out, outer.index, out_stride)
        base = vi.load(builder, vi.I64, _at(builder, places, outer.index, 8))
        later = vi.load(builder, vi.I64, vi.offset(builder, _at(builder, places, outer.index, 8), 8 * AHEAD))
        for line, _ in _tiles(builder, builder.mul(head_dim, vi.whole(size)), (LINE,)):
            _prefetch(builder, builder.add(later, line))
        vi.store(builder, vi.constant(vi.F32, 0.0), builder.sub(builder.add(row, out_stride), vi.whole(LINE)))
        for first, width in _tiles(builder, head_dim, (vi.LANES, 1)):
            values = _loaded(builder, kind, _at(builder, base, first, size), width)
            vi.store(builder, values, _at(builder, row, first, 4))


def _exp(builder: Any, x: Any) -> Any:
    """e^x in float32 for x <= 0, within 2 units of the last place: 0 below -87, NaN of NaN.

    x = n log(2) + r: a polynomial in r (Cephes' expf) times 2^n.
    """
    number = lambda value: vi.constant(vi.F32, value)  # noqa: E731
    is_far = builder.fcmp_ordered("<", x, number(-87.0))
    inside = builder.select(is_far, number(-87.0), x)
    shifted = vi.fma(builder, inside, number(1.4426950408889634), number(12582912.0))  # 1.5 * 2^23: n in the last bits
    n = builder.fsub(shifted, number(12582912.0))
    r = vi.fma(builder, n, number(-0.693359375), inside)
    r = vi.fma(builder, n, number(2.12194440e-4), r)
    y = number(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = vi.fma(builder, y, r, number(c))
    y = builder.fadd(vi.fma(builder, builder.fmul(y, r), r, r), number(1.0))
    exponent = builder.add(builder.bitcast(shifted, WORDS), vi.constant(vi.I32, 127))
    power = builder.bitcast(builder.shl(exponent, vi.constant(vi.I32, 23)), FLOATS)
    return builder.select(is_far, number(0.0), builder.fmul(y, power))


def _tanh(builder: Any, x: Any) -> Any:
    """The hyperbolic tangent in float32 (Cephes' tanhf near 0, by e^-2x elsewhere)."""
    number = lambda value: vi.constant(vi.F32, value)  # noqa: E731
    square, size = builder.fmul(x, x), vi.call(builder, "llvm.fabs.v16f32", FLOATS, [x])
    y = number(-5.70498872745e-3)
    for c in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        y = vi.fma(builder, y, square, number(c))
    near = vi.fma(builder, builder.fmul(x, square), y, x)
    t = _exp(builder, builder.fmul(size, number(-2.0)))
    far = builder.fdiv(builder.fsub(number(1.0), t), builder.fadd(number(1.0), t))
    far = vi.call(builder, "llvm.copysign.v16f32", FLOATS, [far, x])
    return builder.select(builder.fcmp_ordered("<", size, number(0.625)), near, far)


def _lines(builder: Any, row: Any, first: Any, last: Any) -> Iterator[tuple[Any, Any]]:
    """A loop over the vectors that hold first..last of a row: the address, and which lanes are inside."""
    lanes = ir.Constant(WORDS, list(range(vi.LANES)))
    start = builder.sdiv(first, vi.whole(vi.LANES))
    end = builder.sdiv(builder.add(last, vi.whole(vi.LANES - 1)), vi.whole(vi.LANES))
    low, high = (vi.splat(builder, builder.trunc(x, vi.I32)) for x in (first, last))
    with cgutils.for_range(builder, end, start) as loop:
        index = builder.trunc(builder.mul(loop.index, vi.whole(vi.LANES)), vi.I32)
        key = builder.add(vi.splat(builder, index), lanes)
        inside = builder.and_(builder.icmp_signed(">=", key, low), builder.icmp_signed("<", key, high))
        yield _at(builder, row, loop.index, LINE), inside


@routine("qqqd")
def cap(builder: Any, scores: Any, first: Any, last: Any, softcap: Any) -> None:
    """Replace each score s of first..last, and what else is in their vectors, by softcap * tanh(s / softcap)."""
    limit = vi.splat(builder, softcap)
    for place, _ in _lines(builder, scores, first, last):
        ratio = builder.fdiv(vi.load(builder, FLOATS, place), limit)
        vi.store(builder, builder.fmul(limit, _tanh(builder, ratio)), place)


@routine("qqqq")
def soften(builder: Any, scores: Any, first: Any, last: Any, header: Any) -> None:
    """Replace the scores first..last by e^(score - maximum); the maximum and the sum go into a header.

    A lane sums every 16th weight, then halves are added to halves. Scores that are all -inf weigh 0.
    """
    lowest = vi.constant(vi.F32, float("-inf"))
    peaks, sums = (cgutils.alloca_once(builder, FLOATS) for _ in range(2))
    builder.store(lowest, peaks)
    builder.store(vi.constant(vi.F32, 0.0), sums)
    for place, inside in _lines(builder, scores, first, last):
        score = builder.select(inside, vi.load(builder, FLOATS, place), lowest)
        builder.store(_larger(builder, builder.load(peaks), score), peaks)
    peak = _across(builder, builder.load(peaks), _larger)
    base = vi.splat(builder, _finite(builder, peak))
    for place, inside in _lines(builder, scores, first, last):
        weight = _exp(builder, builder.fsub(vi.load(builder, FLOATS, place), base))
        vi.store(builder, weight, place)
        weight = builder.select(inside, weight, vi.constant(vi.F32, 0.0))
        builder.store(builder.fadd(builder.load(sums), weight), sums)
    vi.store(builder, peak, header)
    total = _across(builder, builder.load(sums), lambda builder, a, b: builder.fadd(a, b))
    vi.store(builder, total, vi.offset(builder, header, 4))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each two, a where b is not a number."""
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _finite(builder: Any, peak: Any) -> Any:
    """The maximum in e^(score - maximum): 0 instead of -inf, whose difference to itself is not a number."""
    lowest = ir.Constant(vi.F32, float("-inf"))
    return builder.select(builder.fcmp_ordered("==", peak, lowest), ir.Constant(vi.F32, 0.0), peak)


def _across(builder: Any, values: Any, join: Callable[..., Any]) -> Any:
    """The lanes of a vector joined: the upper half with the lower, until one is left."""
    lanes = vi.LANES
    while lanes > 1:
        lanes //= 2
        parts = (list(range(lanes)), list(range(lanes, 2 * lanes)))
        halves = [builder.shuffle_vector(values, values, ir.Constant(vi.vector(vi.I32, lanes), part)) for part in parts]
        values = join(builder, *halves)
    return builder.extract_element(values, ir.Constant(vi.I32, 0))


@routine("qqq")
def fold(builder: Any, total: Any, piece: Any, vectors: Any) -> None:
    """Take the accumulator of a piece of the keys into that of all pieces before it: the only way to add them."""
    (peak, weight), (other, more) = (
        [vi.load(builder, vi.F32, vi.offset(builder, row, 4 * i)) for i in (0, 1)] for row in (total, piece)
    )
    top = _larger(builder, peak, other)
    base = _finite(builder, top)
    old, new = (_exp(builder, vi.splat(builder, builder.fsub(x, base))) for x in (peak, other))
    joined = vi.fma(builder, vi.splat(builder, weight), old, builder.fmul(vi.splat(builder, more), new))
    vi.store(builder, top, total)
    vi.store(builder, builder.extract_element(joined, ir.Constant(vi.I32, 0)), vi.offset(builder, total, 4))
    with cgutils.for_range(builder, builder.add(vectors, vi.whole(1)), vi.whole(1)) as loop:
        places = [_at(builder, row, loop.index, LINE) for row in (total, piece)]
        held, added = (vi.load(builder, FLOATS, place) for place in places)
        vi.store(builder, vi.fma(builder, held, old, builder.fmul(added, new)), places[0])


def load_rows(builder: Any, kind: Any, rows: Any, stride: Any, count: Any, width: Any, out: Any, factor: Any) -> None:
    """out[r] = rows[r] * factor, `width` values a row; the stride, in bytes, is that of the stored rows."""
    size = SIZES[kind]
    with cgutils.for_range(builder, count) as loop:
        row, place = _at(builder, rows, loop.index, stride), _at(builder, out, builder.mul(loop.index, width), 4)
        for first, lanes in _tiles(builder, width, (vi.LANES, 1)):
            values = _loaded(builder, kind, _at(builder, row, first, size), lanes)
            product = builder.fmul(values, vi.splat(builder, factor, lanes))
            vi.store(builder, product, _at(builder, place, first, 4))


def finish(builder: Any, kind: Any, total: Any, head_dim: Any, out: Any) -> None:
    """Write a row of the result: the values of an accumulator through the sum of its weights."""
    weight = vi.load(builder, vi.F32, vi.offset(builder, total, 4))
    for first, lanes in _tiles(builder, head_dim, (vi.LANES, 1)):
        place = vi.offset(builder, _at(builder, total, first, 4), 4 * HEADER)
        values = vi.load(builder, vi.vector(vi.F32, lanes), place)
        ratio = builder.fdiv(values, vi.splat(builder, weight, lanes))
        vi.store(builder, _narrowed(builder, kind, ratio), _at(builder, out, first, SIZES[kind]))


def _narrowed(builder: Any, kind: Any, values: Any) -> Any:
    """float32 rounded to what is stored, to nearest, ties to even."""
    lanes = values.type.count
    if kind is vi.F32:
        return values
    if kind is vi.F16:
        return builder.fptrunc(values, vi.vector(vi.F16, lanes))
    number = lambda value: vi.constant(vi.I32, value, lanes)  # noqa: E731
    bits = builder.bitcast(values, vi.vector(vi.I32, lanes))
    is_odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.add(builder.add(bits, number(0x7FFF)), is_odd)
    rounded = builder.select(builder.fcmp_unordered("uno", values, values), number(0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, number(16)), vi.vector(vi.I16, lanes))


def _for(write: Callable[..., None], kind: Any) -> Callable[..., None]:
    return lambda builder, *arguments: write(builder, kind, *arguments)


# One of each for every dtype of stored values, by the name of the dtype.
LAYOUTS: dict[Callable[..., None], str] = {pack_keys: "qqq", pack_values: "qqqqq", load_rows: "qqqqqd", finish: "qqq"}
KINDS = {"float32": vi.F32, "bfloat16": vi.BF16}
if any(map(vi.has_feature, ("f16c", "avx512f", "neon", "fp-armv8"))):  # LLVM would call functions that do not exist
    KINDS["float16"] = vi.F16
STORED = {
    name: [add(f"{write.__name__}_{name}", layout, _for(write, kind)) for write, layout in LAYOUTS.items()]
    for name, kind in KINDS.items()
}
