"""Attention on a CPU: one kernel for prefill, decode and what lies between, over the paged cache or a step's own keys.

A unit of work is (sequence, kv head, tile of queries). Where a sequence has one query, a unit is one piece of its keys,
whose accumulator is kept in `partial`, and `merge` folds the pieces; otherwise a unit folds its pieces itself. Either
way they are folded one after another from the earliest on, so the bits are the same. The kernels hold for every dtype:
they get the addresses of values, and the routines that read and write them.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.attention.arithmetic import AHEAD, CHUNK, HEADER
from octavo.kernels.cpu.attention.piece import ADDRESS, FLOAT, SPLIT, Memory, Routines, Shape, attend_piece
from octavo.kernels.cpu.attention.routines import call
from octavo.kernels.cpu.vector_ir import LANES

TILE = 96  # rows, about: enough to pay for the packing of keys, few enough that their scores stay in the second cache


class Cache(NamedTuple):
    """Where keys and values lie: addresses, and bytes from a slot to the next and from a kv head to the next.

    block_size 0: there is no block table, a sequence's slots lie in a row from its first query's on.
    """

    keys: int
    values: int
    key_stride: int
    value_stride: int
    head_stride: int
    block_size: int


@nk.cpu_kernel("ff iii qqqq qqqqqqq qqqqqq qqqqqqqq dd")
def attend(fields):
    """Write the rows of sequences of several queries, and the accumulators of all pieces of the others."""
    sinks = nk.float32_ptrs(fields, 1, 1)[0]
    partial = nk.int_args(fields, 0, 1)[0]
    block_table, context_lens, bounds = nk.int32_ptrs(fields, 2, 3)
    q, keys, values, out = nk.int_args(fields, 5, 4)
    num_seqs, kv_heads, group, head_dim, window, max_splits, has_sinks = nk.int_args(fields, 9, 7)
    size, q_stride, key_stride, value_stride, block_size, max_blocks = nk.int_args(fields, 16, 6)
    code = Routines(*nk.int_args(fields, 22, 8))
    scale, softcap = nk.float_args(fields, 30, 2)
    cache, shape = Cache(keys, values, key_stride, value_stride, head_dim * size, block_size), _shape(group, head_dim)
    tile, longest, work = max(1, TILE // group), 1, 0
    for s in range(num_seqs):
        num_queries = bounds[s + 1] - bounds[s]
        longest = max(longest, min(num_queries, tile))
        for first in range(0, num_queries, tile):
            count = min(tile, num_queries - first)
            start, stop = _pieces(context_lens[s] - num_queries + first, count, window)
            work += kv_heads * _cost(num_queries, count, stop - start)
    mine, others = nk.thread_range(work)

    rows, done = longest * group, 0
    scratch, places = np.empty(_room(rows, shape), np.float32), np.zeros(2 * SPLIT + AHEAD, np.int64)
    lows, highs = np.empty(longest, np.int64), np.empty(longest, np.int64)
    totals = np.empty(rows * shape.width, np.float32)
    memory = _memory(scratch.ctypes.data, places.ctypes.data, rows, shape)
    for s in range(num_seqs):
        num_queries = bounds[s + 1] - bounds[s]
        table = s * max_blocks if block_size else bounds[s]
        for first in range(0, num_queries, tile):
            count = min(tile, num_queries - first)
            newest = context_lens[s] - num_queries + first  # the position of the tile's first query
            start, stop = _pieces(newest, count, window)
            units = stop - start if num_queries == 1 else 1
            cost = _cost(num_queries, count, stop - start) // max(units, 1)
            for unit in range(kv_heads * units):
                if mine <= done < others:
                    head, begin, end = unit // units, start, stop
                    if num_queries == 1:
                        begin = start + unit % units
                        end = begin + 1
                    heads = head * group * head_dim * size
                    source = q + (bounds[s] + first) * q_stride + heads
                    load = source, q_stride, count, group * head_dim, memory.queries, np.float32(scale)
                    call(code.load_rows, load)
                    for i in range(count * group):
                        _reset(totals, i * shape.width, shape.width, sinks, has_sinks, head * group + i % group)
                    for piece in range(begin, end):
                        results = memory.results
                        if num_queries == 1:
                            place = ((s * kv_heads + head) * max_splits + piece) * group
                            results = partial + place * shape.width * FLOAT
                        _see(newest, window, piece, count, lows, highs)
                        _locate(block_table, table, cache, head, piece * SPLIT, lows[0], highs[count - 1], places)
                        attend_piece(code, lows, highs, count, memory, shape, np.float32(softcap), results)
                        if num_queries > 1:
                            _fold_all(code, totals, results, lows, highs, count, shape)
                    if num_queries > 1:
                        for i in range(count * group):
                            seen = newest + i // group >= 0
                            line = (bounds[s] + first + i // group) * kv_heads * group * head_dim * size + heads
                            place = out + line + i % group * head_dim * size
                            _finish(code, totals, i * shape.width, seen, head_dim, place)
                done += cost
    scratch[0], places[0] = 0, 0  # kept until here: numba frees what is mentioned no more, and only addresses were


@njit
def _shape(group, head_dim):
    vectors = (head_dim + LANES - 1) // LANES
    return Shape(group, head_dim, vectors, HEADER + vectors * LANES)


@njit
def _room(rows, shape):
    """The values of all that `_memory` places."""
    return rows * (shape.head_dim + SPLIT + shape.width) + CHUNK * (shape.head_dim + shape.vectors * LANES)


@njit
def _memory(scratch, places, rows, shape):
    queries = np.int64(scratch)
    scores = queries + rows * shape.head_dim * FLOAT
    keys = scores + rows * SPLIT * FLOAT
    values = keys + shape.head_dim * CHUNK * FLOAT
    results = values + CHUNK * shape.vectors * LANES * FLOAT
    return Memory(queries, scores, keys, values, results, np.int64(places), np.int64(places) + SPLIT * ADDRESS)


@njit
def _pieces(newest, count, window):
    """The first of the pieces that `count` queries see, and the one behind the last; `newest`: the first's position."""
    earliest = max(0, newest + 1 - window) if window > 0 else 0
    return earliest // SPLIT, max(earliest // SPLIT, (newest + count + SPLIT - 1) // SPLIT)


@njit
def _cost(num_queries, count, num_pieces):
    """What a tile is worth when work is divided: with one query as much as it has units, otherwise 1 at least."""
    return num_pieces if num_queries == 1 else max(1, count * num_pieces)


@njit
def _see(newest, window, piece, count, lows, highs):
    """Which keys of a piece each query sees, counted from the piece's first."""
    for i in range(count):
        last = newest + i + 1
        earliest = max(0, last - window) if window > 0 else 0
        lows[i] = min(max(earliest - piece * SPLIT, 0), SPLIT)
        highs[i] = min(max(last - piece * SPLIT, 0), SPLIT)


@njit
def _locate(block_table, table, cache, head, first, low, high, places):
    """The addresses of keys and values low..high of the piece that begins at position `first`.

    Vectors of keys that reach beyond have one of these in each lane that nobody sees.
    """
    j, keys, values = low, cache.keys + head * cache.head_stride, cache.values + head * cache.head_stride
    while j < high:
        slot, count = table + first + j, high - j
        if cache.block_size > 0:
            block = (first + j) // cache.block_size
            offset = first + j - block * cache.block_size
            slot = block_table[table + block] * cache.block_size + offset
            count = min(count, cache.block_size - offset)
        for i in range(count):
            places[j + i] = keys + (slot + i) * cache.key_stride
            places[SPLIT + j + i] = values + (slot + i) * cache.value_stride
        j += count
    for j in range(low // LANES * LANES, low):
        places[j] = places[low]
    for j in range(high, (high + LANES - 1) // LANES * LANES):
        places[j] = places[high - 1]


@njit
def _fold_all(code, totals, results, lows, highs, count, shape):
    for i in range(count):
        if lows[i] < highs[i]:
            for row in range(i * shape.group, (i + 1) * shape.group):
                place = row * shape.width * FLOAT
                call(code.fold, (totals.ctypes.data + place, results + place, shape.vectors))


@njit
def _reset(totals, place, width, sinks, has_sinks, head):
    """An accumulator of nothing, or of a sink, which has weight and no value."""
    for i in range(width):
        totals[place + i] = 0
    totals[place] = sinks[head] if has_sinks else np.float32(-np.inf)
    totals[place + 1] = np.float32(1) if has_sinks else np.float32(0)


@njit
def _finish(code, totals, place, seen, head_dim, out):
    """Write a row: the values through the sum of their weights, zeros where no key was seen."""
    if not seen:
        totals[place + 1] = 1
    call(code.finish, (totals.ctypes.data + place * FLOAT, head_dim, out))


@nk.cpu_kernel("ff ii q qqqqqqq qq qqqqqqqq")
def merge(fields):
    """Fold the pieces of sequences of one query; zeros in the rows behind the last sequence."""
    sinks = nk.float32_ptrs(fields, 1, 1)[0]
    partial = nk.int_args(fields, 0, 1)[0]
    context_lens, bounds = nk.int32_ptrs(fields, 2, 2)
    out, num_seqs, kv_heads, group, head_dim, window, max_splits, has_sinks = nk.int_args(fields, 4, 8)
    size, num_tokens = nk.int_args(fields, 12, 2)
    code = Routines(*nk.int_args(fields, 14, 8))
    first, last = nk.thread_range(num_seqs)
    shape, num_heads = _shape(group, head_dim), kv_heads * group
    total = np.empty(shape.width, np.float32)
    if last == num_seqs:
        for row in range(bounds[num_seqs] * num_heads, num_tokens * num_heads):
            _reset(total, 0, shape.width, sinks, 0, 0)
            _finish(code, total, 0, False, head_dim, out + row * head_dim * size)
    for s in range(first, last):
        if bounds[s + 1] - bounds[s] == 1:
            start, stop = _pieces(context_lens[s] - 1, 1, window)
            for head in range(num_heads):
                _reset(total, 0, shape.width, sinks, has_sinks, head)
                place = (s * kv_heads + head // group) * max_splits * group + head % group
                for piece in range(start, stop):
                    row = partial + (place + piece * group) * shape.width * FLOAT
                    call(code.fold, (total.ctypes.data, row, shape.vectors))
                row = bounds[s] * num_heads + head
                _finish(code, total, 0, context_lens[s] > 0, head_dim, out + row * head_dim * size)
