"""Attention to a piece of the keys, on a CPU: scores, softmax, weighted values of a tile of queries.

Keys are cut at absolute multiples of `SPLIT`. What a query gets from a piece depends only on itself and the keys that
it sees in it, so prefill and decode, which differ in the queries that lie in a tile, have the same bits. A key that a
query does not see is never multiplied into its sum, not even by zero: it may be infinite.
"""

from typing import Any, NamedTuple

from numba import njit

from octavo.kernels.cpu.attention.arithmetic import ADD, CHUNK, LINE, NEW, RESUME, TILE_ROWS
from octavo.kernels.cpu.attention.routines import call
from octavo.kernels.cpu.vector_ir import LANES

SPLIT = 256  # keys
DIMS = 64  # of a head that are summed in one go: longer sums are less accurate
STEP = TILE_ROWS[0]  # rows that are multiplied together
FLOAT, ADDRESS = 4, 8  # bytes


class Routines(NamedTuple):
    """Addresses of the arithmetic, the last four for the dtype of the values."""

    product: int
    cap: int
    soften: int
    fold: int
    pack_keys: int
    pack_values: int
    load_rows: int
    finish: int


class Shape(NamedTuple):
    """Of a tile: each query has `group` rows, one a query head of the kv head."""

    group: int
    head_dim: int
    vectors: int  # of a row of values
    width: int  # values of an accumulator's row


class Memory(NamedTuple):
    """Addresses: queries `[rows, head_dim]`, scores `[rows, SPLIT]`, a chunk of keys and one of values, accumulators
    `[rows, width]`, and where the keys and the values of the piece lie, an address each."""

    queries: Any
    scores: Any
    keys: Any
    values: Any
    results: Any
    key_places: Any
    value_places: Any


@njit
def attend_piece(code, lows, highs, count, memory, shape, softcap, out):
    """The accumulators of all rows at `out`; query i sees the keys `lows[i]..highs[i]` of the piece, both ascending.

    Rows whose query sees none hold nothing of meaning.
    """
    _score(code, lows, highs, count, memory, shape)
    for i in range(count):
        if lows[i] < highs[i]:
            for row in range(i * shape.group, (i + 1) * shape.group):
                scores = memory.scores + row * SPLIT * FLOAT
                if softcap > 0:
                    call(code.cap, (scores, lows[i], highs[i], softcap))
                call(code.soften, (scores, lows[i], highs[i], out + row * shape.width * FLOAT))
    _collect(code, lows, highs, count, memory, shape, out)


@njit
def _active(lows, highs, count, first, last):
    """The queries that see some of the keys first..last: the first of them, and the one behind the last."""
    start, stop = 0, count
    while start < stop and highs[start] <= first:
        start += 1
    while stop > start and lows[stop - 1] >= last:
        stop -= 1
    return start, stop


@njit
def _score(code, lows, highs, count, memory, shape):
    """The scores of all keys that somebody sees, chunk by chunk."""
    size, end = shape.head_dim * FLOAT, highs[count - 1]
    for chunk in range(lows[0] // CHUNK * CHUNK, end, CHUNK):
        first, last = max(chunk, lows[0] // LANES * LANES), min(chunk + CHUNK, end)
        for key in range(first, last, LANES):
            place = memory.keys + (key - chunk) * FLOAT
            call(code.pack_keys, (memory.key_places + key * ADDRESS, shape.head_dim, place))
        start, stop = _active(lows, highs, count, first, last)
        row, vectors = start * shape.group, (last - first + LANES - 1) // LANES
        rows, scores = (stop - start) * shape.group, memory.scores + (row * SPLIT + first) * FLOAT
        for d in range(0, shape.head_dim, DIMS):
            queries, keys = memory.queries + row * size + d * FLOAT, memory.keys + (d * CHUNK + first - chunk) * FLOAT
            depth, mode = min(DIMS, shape.head_dim - d), NEW if d == 0 else ADD
            product = queries, size, keys, CHUNK * FLOAT, depth, scores, SPLIT * FLOAT, rows, vectors, mode
            call(code.product, product)


@njit
def _collect(code, lows, highs, count, memory, shape, out):
    """The values, each times its weight, chunk by chunk."""
    stride, end = shape.vectors * LINE, highs[count - 1]
    rows = count * shape.group
    call(code.product, (0, 0, 0, 0, 0, out + LINE, shape.width * FLOAT, rows, shape.vectors, NEW))  # zeros
    for chunk in range(lows[0] // CHUNK * CHUNK, end, CHUNK):
        first, last = max(chunk, lows[0]), min(chunk + CHUNK, end)
        places = memory.value_places + first * ADDRESS
        call(code.pack_values, (places, last - first, shape.head_dim, memory.values, stride))
        start, stop = _active(lows, highs, count, first, last)
        all_see_all = highs[start] >= last and lows[stop - 1] <= first
        step = stop - start if all_see_all else max(1, STEP // shape.group)
        for i in range(start, stop, step):
            behind = min(i + step, stop)
            low, high = max(lows[behind - 1], first), min(highs[i], last)  # seen by each of these queries
            if low >= high:
                low, high = last, last
            for query in range(i, behind):
                _weigh(code, query, 1, max(lows[query], first), min(highs[query], low), first, memory, shape, out)
            _weigh(code, i, behind - i, low, high, first, memory, shape, out)
            for query in range(i, behind):
                _weigh(code, query, 1, max(lows[query], high), min(highs[query], last), first, memory, shape, out)


@njit
def _weigh(code, query, count, low, high, first, memory, shape, out):
    """Add the values low..high to the rows of `count` queries; the chunk of values begins at key `first`."""
    if low < high:
        row, stride = query * shape.group, shape.vectors * LINE
        scores, values = memory.scores + (row * SPLIT + low) * FLOAT, memory.values + (low - first) * stride
        sums, width = out + row * shape.width * FLOAT + LINE, shape.width * FLOAT
        product = (
            scores,
            SPLIT * FLOAT,
            values,
            stride,
            high - low,
            sums,
            width,
            count * shape.group,
            shape.vectors,
            RESUME,
        )
        call(code.product, product)
