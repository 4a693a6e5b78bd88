"""Decode attention on a CPU: one query a sequence, read from the paged cache where it lies.

As on a GPU the context is cut at every `SPLIT` keys: a pair of loops, the first over (sequence, kv head, split), which
leaves a maximum, a sum and a weighted sum of values for each, the second over (sequence, head), which joins them. The
query heads of a kv head are served together, so keys and values are read once. With a window the splits that lie before
it are left out; the others are cut where they always are.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk

SPLIT = 256  # keys


@nk.cpu_kernel("vvv f iii qqqqqqqqq dd")
def _attend(fields):
    q, k_cache, v_cache = nk.float_ptrs(fields, 0, 3)
    (partial,) = nk.float32_ptrs(fields, 3, 1)
    block_table, context_lens, bounds = nk.int32_ptrs(fields, 4, 3)
    num_seqs, kv_heads, group, head_dim, window, block_size, max_blocks, max_splits, q_stride = nk.int_args(
        fields, 7, 9
    )
    scale, softcap = nk.float_args(fields, 16, 2)
    factor, softcap = np.float32(scale), np.float32(softcap)

    count = 0
    for s in range(num_seqs):
        count += (_splits(context_lens[s]) - _first_key(context_lens[s], window) // SPLIT) * kv_heads
    first, last = nk.thread_range(count)

    queries, sums = np.empty((group, head_dim), np.float32), np.empty((group, head_dim), np.float32)
    weights, slots = np.empty((group, SPLIT), np.float32), np.empty(SPLIT, np.int64)
    item = 0
    for s in range(num_seqs):
        for head in range(kv_heads):
            for split in range(_first_key(context_lens[s], window) // SPLIT, _splits(context_lens[s])):
                if first <= item < last and bounds[s + 1] - bounds[s] == 1:
                    first_key = max(split * SPLIT, _first_key(context_lens[s], window))
                    num_keys = min((split + 1) * SPLIT, context_lens[s]) - first_key
                    _locate(block_table, s * max_blocks, block_size, first_key, num_keys, slots)
                    for j in range(num_keys):
                        slots[j] = (slots[j] * kv_heads + head) * head_dim
                    _load(q, bounds[s] * q_stride + head * group * head_dim, factor, queries)
                    place = ((s * kv_heads + head) * max_splits + split) * group * (head_dim + 2)
                    _score(queries, k_cache, slots, num_keys, weights)
                    if softcap > 0:
                        _cap(weights, num_keys, softcap)
                    _softmax(weights, num_keys, partial, place, head_dim)
                    _accumulate(weights, v_cache, slots, num_keys, sums)
                    _store(sums, partial, place)
                item += 1


@njit
def _splits(context_len):
    """The number of splits of a context, those before the window included."""
    return (context_len + SPLIT - 1) // SPLIT


@njit
def _first_key(context_len, window):
    """The earliest position that the newest token sees; all where the window is 0."""
    return max(0, context_len - window) if window > 0 else 0


@njit
def _locate(block_table, row, block_size, first, num_keys, slots):
    """The slots of `num_keys` keys from the one at position `first`; `row`: where the sequence's blocks begin."""
    for j in range(num_keys):
        block = block_table[row + (first + j) // block_size]
        slots[j] = block * block_size + (first + j) % block_size


@njit
def _load(q, start, factor, queries):
    """The queries of a kv head, scaled."""
    for g in range(queries.shape[0]):
        for i in range(queries.shape[1]):
            queries[g, i] = nk.to_float32(q[start + g * queries.shape[1] + i]) * factor


@njit
def _store(sums, partial, place):
    for g in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            partial[place + g * (sums.shape[1] + 2) + 2 + i] = sums[g, i]


@njit(fastmath=nk.FASTMATH_REASSOC)
def _score(queries, k_cache, slots, num_keys, scores):
    """scores[g, j] = queries[g] . key j"""
    for j in range(num_keys):
        start = slots[j]
        for g in range(queries.shape[0]):
            query, product = queries[g], np.float32(0)
            for i in range(queries.shape[1]):
                product += query[i] * nk.to_float32(k_cache[start + i])
            scores[g, j] = product


@njit(fastmath=nk.FASTMATH_CONTRACT)
def _cap(scores, num_keys, softcap):
    """Replace each score s by softcap * tanh(s / softcap)."""
    for g in range(scores.shape[0]):
        own = scores[g]
        for j in range(num_keys):
            own[j] = softcap * nk.tanh(own[j] / softcap)


@njit(fastmath=nk.FASTMATH_REASSOC)
def _softmax(scores, num_keys, partial, place, head_dim):
    """Replace the scores of a head by e^(score - maximum); the maximum and the sum go to the partial results."""
    for g in range(scores.shape[0]):
        own, largest, total = scores[g], np.float32(-np.inf), np.float32(0)
        for j in range(num_keys):
            largest = own[j] if own[j] > largest else largest
        for j in range(num_keys):
            own[j] = nk.exp(own[j] - largest)
            total += own[j]
        partial[place + g * (head_dim + 2)] = largest
        partial[place + g * (head_dim + 2) + 1] = total


@njit(fastmath=nk.FASTMATH_REASSOC)
def _accumulate(weights, v_cache, slots, num_keys, sums):
    """sums[g] = the values, each times its weight"""
    sums[:] = 0
    for j in range(num_keys):
        start = slots[j]
        for g in range(sums.shape[0]):
            own, weight = sums[g], weights[g, j]
            for i in range(sums.shape[1]):
                own[i] += weight * nk.to_float32(v_cache[start + i])


@nk.cpu_kernel("v ff ii qqqqqqqq")
def _merge(fields):
    (out,) = nk.float_ptrs(fields, 0, 1)
    partial, sinks = nk.float32_ptrs(fields, 1, 2)
    context_lens, bounds = nk.int32_ptrs(fields, 3, 2)
    num_seqs, kv_heads, group, head_dim, window, max_splits, num_tokens, has_sinks = nk.int_args(fields, 5, 8)
    first, last = nk.thread_range(num_seqs)
    width, sums = head_dim + 2, np.empty(head_dim, np.float32)
    if last == num_seqs:  # padding rows behind the last sequence are zeros
        for i in range(bounds[num_seqs] * kv_heads * group * head_dim, num_tokens * kv_heads * group * head_dim):
            out[i] = nk.from_float32(np.float32(0), out[0])
    for s in range(first, last):
        splits, first_split = _splits(context_lens[s]), _first_key(context_lens[s], window) // SPLIT
        if bounds[s + 1] - bounds[s] == 1:
            for head in range(kv_heads * group):
                place = (head // group * max_splits * group + head % group) * width
                place += s * kv_heads * max_splits * group * width
                largest, total = np.float32(-np.inf), np.float32(0)
                for split in range(first_split, splits):
                    peak = partial[place + split * group * width]
                    largest = peak if peak > largest else largest
                if has_sinks:
                    largest = max(largest, sinks[head])
                    total = nk.exp(sinks[head] - largest)
                sums[:] = 0
                for split in range(first_split, splits):
                    at = place + split * group * width
                    weight = nk.exp(partial[at] - largest)
                    total += weight * partial[at + 1]
                    for i in range(head_dim):
                        sums[i] += weight * partial[at + 2 + i]
                start = (bounds[s] * kv_heads * group + head) * head_dim
                for i in range(head_dim):
                    out[start + i] = nk.from_float32(sums[i] / total if splits > 0 else np.float32(0), out[0])


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Write the rows of `out` that belong to sequences of one query, and zeros to those behind the last sequence.

    See the reference's `paged_attention`.
    """
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("k_cache and v_cache must be contiguous")
    q, dtype = nk.rows_of_heads(q), nk.common_dtype(q, k_cache, v_cache)
    block_size, num_kv_heads, head_dim = k_cache.shape[1:]
    (num_seqs, max_blocks), group = block_table.shape, q.shape[1] // num_kv_heads
    max_splits = -(-max_blocks * block_size // SPLIT)
    size = num_seqs * num_kv_heads * max_splits * group * (head_dim + 2)
    partial = torch.empty(size, dtype=torch.float32, device=q.device)
    shape = num_seqs, num_kv_heads, group, head_dim, window
    work = num_seqs * max_splits * SPLIT * q.shape[1]
    indices = [x.int().contiguous() for x in (block_table, context_lens, cu_seqlens_q)]
    sizes = *shape, block_size, max_blocks, max_splits, q.stride(0)
    _attend(dtype, work, q, k_cache, v_cache, partial, *indices, *sizes, scale, softcap)
    given = partial if sinks is None else sinks.contiguous()  # without sinks the kernel never reads it
    _merge(dtype, q.numel(), out, partial, given, *indices[1:], *shape, max_splits, len(q), sinks is not None)
