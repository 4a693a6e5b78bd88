"""The cut of top-k and top-p: an exact search with no sort, no early end, and little to read.

Ids rank by key, then by lower id. Each has a mass, 1 for top-k, its weight for top-p, and is kept if the mass ranked
before it is less than a target: k, or `ceil(p * all mass)`. So the cut is at the lowest key such that the mass above it
falls short of the target; of the ids that have this key, as many are kept, lowest first, as the target has room for.

A key is an integer of 32 bits: its interval is halved as often as it takes to leave one key, 32 times at most. Where a
row has more groups than a program keeps in registers, their maxima are searched first. Their mass is a part of all
mass, so the key found is not above the true one, and only the groups that reach it need be read: for k = 50 some 50 of
more than a thousand. Then the ids of those groups are searched; the first CHUNK of them stay in registers. Masses are
integers, the same in any order of addition.
"""

import triton
import triton.language as tl

from octavo.kernels.triton.sampling.sampling_math import NO_KEY, from_key, gap_below, to_key, weight_units
from octavo.kernels.triton.sampling.scan import list_groups, load_chunk, load_group_keys


@triton.jit
def is_kept(key, ids, cut_key, cut_id):
    return (key > cut_key) | ((key == cut_key) & (ids <= cut_id))


@triton.jit
def _mass(key, scale, peak, WEIGHTS: tl.constexpr):
    """What an id of this key counts for: its weight, or 1."""
    if WEIGHTS:
        return weight_units(gap_below(from_key(key), peak) * scale)
    else:
        return tl.full(key.shape, 1, tl.int32)


@triton.jit
def _kept_mass(key, ids, cut_key, cut_id, scale, peak, WEIGHTS: tl.constexpr):
    return tl.where(is_kept(key, ids, cut_key, cut_id), _mass(key, scale, peak, WEIGHTS), 0)


@triton.jit
def _mass_above(threshold, key, mass):
    return tl.sum(tl.where(key > threshold, mass, 0), 1, keep_dims=True)


@triton.jit
def _middle(low, high):
    return (low & high) + ((low ^ high) >> 1)  # the floor of their mean, without the overflow of their sum


@triton.jit
def _steps(low, high):
    """How often [low, high] has to be halved until one key is left: the bits of its width, 32 at most."""
    width = tl.max(high.to(tl.int64) - low.to(tl.int64)).to(tl.float64)
    return tl.maximum((width.to(tl.int64, bitcast=True) >> 52) - 1022, 0).to(tl.int32)


@triton.jit
def _halve(low, high, above, mass, target):
    """The cut's key is in [low, high] and `above` is the mass above high; mass is what lies above their middle."""
    short, middle = mass < target, _middle(low, high)
    return tl.where(short, low, middle + 1), tl.where(short, middle, high), tl.where(short, mass, above)


@triton.jit
def find_cut(
    limit,
    cut_key,
    cut_id,
    scale,
    peak,
    logits_row,
    allowed_row,
    key_row,
    list_row,
    WEIGHTS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Top-p if WEIGHTS, else top-k, of the ids that an earlier cut keeps; limit is p, 1 off, or k, VOCAB_SIZE off.

    A cut is the (key, id) of the last id that is kept; all arguments and results are `[ROWS, 1]`.
    """
    keys = load_group_keys(key_row, NUM_GROUPS)
    target = limit
    if WEIGHTS:
        count = list_groups(keys >= cut_key, list_row, NUM_GROUPS)
        total = tl.zeros(peak.shape, tl.int64)
        for start in range(0, tl.max(count), CHUNK // GROUP):
            ids, key = load_chunk(logits_row, allowed_row, list_row, start, count, VOCAB_SIZE, GROUP, CHUNK)
            total += tl.sum(_kept_mass(key, ids, cut_key, cut_id, scale, peak, WEIGHTS), 1, keep_dims=True)
        share = tl.ceil(total.to(tl.float64) * limit.to(tl.float64)).to(tl.int64)
        target = tl.where(limit < 1, tl.maximum(share, 1), total + 1)

    low, high, above = cut_key, to_key(peak), tl.zeros_like(target)
    if tl.max(tl.sum((keys >= cut_key).to(tl.int32), 1)) > CHUNK // GROUP:
        masses = tl.where(keys > cut_key, _mass(keys, scale, peak, WEIGHTS), 0)
        lowest = tl.maximum(cut_key, tl.min(tl.where(keys > NO_KEY, keys, 0x7FFFFFFF), 1, keep_dims=True))
        low = lowest
        for _ in range(_steps(low, high)):
            mass = _mass_above(_middle(low, high), keys, masses)
            low, high, above = _halve(low, high, above, mass, target)
        low = tl.where(low > lowest, low, cut_key)  # where all maxima fall short, the cut may be below them
        high, above = to_key(peak), tl.zeros_like(target)

    count = list_groups(keys >= low, list_row, NUM_GROUPS)
    first_ids, first_key = load_chunk(logits_row, allowed_row, list_row, 0, count, VOCAB_SIZE, GROUP, CHUNK)
    first_mass = _kept_mass(first_key, first_ids, cut_key, cut_id, scale, peak, WEIGHTS)
    for _ in range(_steps(low, high)):
        mass = _mass_above(_middle(low, high), first_key, first_mass)
        for start in range(CHUNK // GROUP, tl.max(count), CHUNK // GROUP):
            ids, key = load_chunk(logits_row, allowed_row, list_row, start, count, VOCAB_SIZE, GROUP, CHUNK)
            mass += _mass_above(_middle(low, high), key, _kept_mass(key, ids, cut_key, cut_id, scale, peak, WEIGHTS))
        low, high, above = _halve(low, high, above, mass, target)

    each = _mass(low, scale, peak, WEIGHTS)
    seen, last = tl.zeros_like(count), tl.zeros_like(count) - 1
    for start in range(0, tl.max(count), CHUNK // GROUP):
        ids, key = load_chunk(logits_row, allowed_row, list_row, start, count, VOCAB_SIZE, GROUP, CHUNK)
        tied = is_kept(key, ids, cut_key, cut_id) & (key == low)
        before = above + (seen + tl.cumsum(tied.to(tl.int32), 1) - 1) * each
        last = tl.maximum(last, tl.max(tl.where(tied & (before < target), ids, -1), 1, keep_dims=True))
        seen += tl.sum(tied.to(tl.int32), 1, keep_dims=True)
    return low, last
