"""Sampling on a CPU: the same tokens as the reference, a row at a time, in loops that round as the reference does.

A row starts with a weight for every id; each filter sets those to 0 that it takes out. What passes top-k and top-p is
found by a histogram of the logits' bits, with no sort. The draw computes noise for a block of ids at once, in wide
registers, and leaves blocks out in which nothing is kept.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.linear import linear
from octavo.kernels.sampling_math import EXP_FIT, LOG_FIT, TOP_P_UNIT, gap_below
from octavo.kernels.weights import Weight

# Inner loops round as they are written: without a word about fastmath they would have their caller's. Nothing but
# other loops calls them, so there is less to compile.
INNER = {"fastmath": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

BLOCK = 64  # ids whose noise is computed at once

DIGIT = 11  # bits of a rank that a histogram looks at in one pass, of three
LOWEST = -(2**31)
RANK_OF_NONE = np.int32(0x807FFFFF - 2**32)  # of -inf

# What sampling_math computes with, as constants of one type: a number in a loop would make it float64 or int64.
LOG_TERMS, EXP_TERMS = (tuple(map(np.float32, reversed(fit))) for fit in (LOG_FIT, EXP_FIT))
ZERO, ONE_HALF, ONE, UNITS = map(np.float32, (0, 0.5, 1, TOP_P_UNIT))
UNIT, HALF_UNIT, BELOW_ONE = map(np.float32, (2.0**-32, 2.0**-33, 1 - 2.0**-24))
LOG_2, LOG2_E, LOG_2_HIGH, LOG_2_LOW = map(np.float32, (0.69314718, 1.4426950, 0.693359375, -2.1219444e-4))
FLOAT_MAX, FLOAT_TINY, LOWEST_SCALED = np.finfo(np.float32).max, np.finfo(np.float32).tiny, np.float32(-64)
FACTOR_0, FACTOR_2, STEP_0, STEP_1 = map(np.uint64, (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))
NOTHING, HALF, WORD = map(np.uint64, (0, 32, 0xFFFFFFFF))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row: see the reference."""
    return _choose(logits, temperature, top_k, top_p, min_p, seeds, positions, allowed, wants_logprobs=True)


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters: see the reference."""
    off, logits = torch.zeros_like(temperature), linear(hidden, weight)
    return _choose(logits, temperature, off.int(), 1 + off, off, seeds, positions, None, wants_logprobs=False)[0]


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row and their log-probabilities, best first: see the reference."""
    (num_seqs, vocab_size), logits = logits.shape, logits.float().contiguous()
    places = torch.empty(num_seqs, min(num, vocab_size), 2, dtype=torch.int32, device=logits.device)
    log_totals = torch.empty(num_seqs, 1, dtype=torch.float32, device=logits.device)
    _likeliest(torch.float32, logits.numel(), logits, log_totals, places, num_seqs, vocab_size, places.shape[1])
    ids = places.view(torch.int64).squeeze(-1).sort(-1).values & 0xFFFFFFFF
    logprobs = gap_below(logits.gather(1, ids)) - log_totals
    return torch.where(log_totals.isnan(), -1, ids).int(), logprobs


def _choose(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    allowed: Tensor | None,
    wants_logprobs: bool,
) -> tuple[Tensor, Tensor]:
    num_seqs, vocab_size = logits.shape
    token_ids = torch.empty(num_seqs, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(num_seqs, dtype=torch.float32, device=logits.device)
    floats = (x.float().contiguous() for x in (logits, temperature, top_p, min_p))
    halves = seeds.contiguous().view(torch.int32)  # of a seed, the low one first
    words = torch.empty(0, 0, dtype=torch.int32, device=logits.device) if allowed is None else allowed.contiguous()
    integers = top_k.contiguous(), positions.contiguous(), halves, token_ids, words
    sizes = num_seqs, vocab_size, words.shape[1]
    _sample(torch.float32, logits.numel(), *floats, logprobs, *integers, *sizes, wants_logprobs)
    return token_ids, logprobs


@nk.cpu_kernel("fffff iiiii qqqq")
def _sample(fields):
    logits, temperatures, top_ps, min_ps, logprobs = nk.float32_ptrs(fields, 0, 5)
    top_ks, positions, seeds, token_ids, allowed = nk.int32_ptrs(fields, 5, 5)
    num_seqs, vocab_size, num_words, wants_logprobs = nk.int_args(fields, 10, 4)
    first, last = nk.thread_range(num_seqs)
    weights, score = np.empty(vocab_size, np.int64), np.empty(BLOCK, np.float64)
    for row in range(first, last):
        start = row * vocab_size
        chosen = likeliest = _first_maximum(logits, start, vocab_size)
        has_filters = num_words > 0 or top_ks[row] > 0 or top_ps[row] < 1 or min_ps[row] > 0
        if has_filters:
            _fill(weights, 1)
        if num_words > 0 and chosen >= 0:
            _forbid(allowed, row * num_words, weights)
            chosen = _first_allowed(logits, start, weights)
        peak = logits[start + max(chosen, 0)]
        if chosen >= 0 and temperatures[row] > 0:
            temperature = min(temperatures[row], FLOAT_MAX)
            limits = top_ks[row], top_ps[row], min_ps[row]
            if has_filters:
                _filter(logits, start, peak, temperature, limits, weights)
            key = _word(positions[row]), _word(seeds[2 * row]), _word(seeds[2 * row + 1])
            chosen = _draw(logits, start, temperature, key, has_filters, weights, score)
        token_ids[row] = chosen
        logprobs[row] = np.nan
        if chosen >= 0 and wants_logprobs:
            peak = logits[start + likeliest]
            gap = _scaled(logits[start + chosen], peak, ONE)
            logprobs[row] = gap - _log_total(logits, start, vocab_size, peak)


@nk.cpu_kernel("ff i qqq")
def _likeliest(fields):
    """The `num` likeliest ids of each row, each below a number that falls with its logit: sorted as int64, in order."""
    logits, log_totals = nk.float32_ptrs(fields, 0, 2)
    (places,) = nk.int32_ptrs(fields, 2, 1)
    num_seqs, vocab_size, num = nk.int_args(fields, 3, 3)
    first, last = nk.thread_range(num_seqs)
    weights = np.empty(vocab_size, np.int64)
    for row in range(first, last):
        start, out = row * vocab_size, 2 * row * num
        best = _first_maximum(logits, start, vocab_size)
        log_totals[row] = _log_total(logits, start, vocab_size, logits[start + best]) if best >= 0 else np.nan
        _fill(weights, 1)
        if num < vocab_size:
            _keep_first(logits, start, weights, num)
        for i in range(vocab_size):
            if weights[i] != 0:
                places[out], places[out + 1] = i, ~_rank(logits[start + i])
                out += 2


@njit(**INNER)
def _rank(x):
    """An int32 that grows with the logit, the same for both zeros."""
    bits = np.float32(x + ZERO).view(np.int32)
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@njit(**INNER)
def _first_maximum(logits, start, size):
    """The lowest id of a row's largest logit; -1 if there is a NaN, or nothing above -inf."""
    best, nans = np.int32(RANK_OF_NONE), 0
    for i in range(start, start + size):
        best = max(best, _rank(logits[i]))
        nans |= logits[i] != logits[i]
    if nans or best == RANK_OF_NONE:
        return -1
    place = 0
    while _rank(logits[start + place]) != best:
        place += 1
    return place


@njit(**INNER)
def _forbid(allowed, first_word, weights):
    """Set the weight of every id to 0 whose bit is 0."""
    for i in range(weights.size):
        weights[i] = weights[i] if (allowed[first_word + (i >> 5)] >> (i & 31)) & 1 else 0


@njit(**INNER)
def _first_allowed(logits, start, weights):
    """The lowest id of the largest logit, of the ids with a weight; -1 if none of them is above -inf."""
    best, place = np.int32(RANK_OF_NONE), -1
    for i in range(weights.size):
        rank = _rank(logits[start + i])
        if weights[i] != 0 and rank > best:
            best, place = rank, i
    return place


@njit(**INNER)
def _scaled(x, peak, inverse):
    """How far a logit lies below the largest, 0 at the largest even at +inf, times that factor."""
    return (ZERO if x == peak else x - peak) * inverse


@njit(**INNER)
def _filter(logits, start, peak, temperature, limits, weights):
    """Leave a weight above 0, of the ids that have one, to what passes top-k, then top-p, then min-p."""
    top_k, top_p, min_p = limits
    inverse = min(ONE / temperature, FLOAT_MAX)
    if 0 < top_k < weights.size:
        _keep_first(logits, start, weights, np.int64(top_k))
    if top_p < 1:
        total = np.int64(0)
        for i in range(weights.size):
            weights[i] = _weight_q44(_scaled(logits[start + i], peak, inverse)) if weights[i] != 0 else 0
            total += weights[i]
        wanted = math.ceil(np.float64(total) * np.float64(top_p))
        _keep_first(logits, start, weights, np.int64(max(wanted, 1)))
    if min_p > 0:
        limited = min(max(min_p, FLOAT_TINY), ONE)
        floor = _natural_log(limited, limited - ONE)
        for i in range(weights.size):
            weights[i] = weights[i] if _scaled(logits[start + i], peak, inverse) >= floor else 0


@njit(**INNER)
def _fill(weights, value):
    for i in range(weights.size):
        weights[i] = value


@njit(**INNER)
def _keep_first(logits, start, weights, wanted):
    """Set the weight of an id to 0 if those that rank before it weigh `wanted` or more; ties rank by id.

    The rank of the last id that stays is found digit by digit, from the highest.
    """
    mass = np.empty(2**DIGIT, np.int64)
    above, last = 0, 0
    for shift in range(2 * DIGIT, -1, -DIGIT):
        _fill(mass, 0)
        for i in range(weights.size):
            rank = _rank(logits[start + i]) - LOWEST
            if rank >> (shift + DIGIT) == last >> (shift + DIGIT):
                mass[(rank >> shift) & (2**DIGIT - 1)] += weights[i]
        digit = 2**DIGIT - 1
        while digit > 0 and above + mass[digit] < wanted:
            above += mass[digit]
            digit -= 1
        last |= digit << shift
    rank_of_last = np.int32(last + LOWEST)
    for i in range(weights.size):
        weights[i] = weights[i] if _rank(logits[start + i]) >= rank_of_last else 0
    for i in range(weights.size):
        if _rank(logits[start + i]) == rank_of_last:
            weight = weights[i]
            weights[i] = weight if above < wanted else 0
            above += weight


@njit(**INNER)
def _draw(logits, start, temperature, key, has_filters, weights, score):
    """The id, of those with a weight, whose logit with noise is the largest; ties go to the lowest."""
    best, chosen, heat = -np.inf, -1, np.float64(temperature)
    for first in range(0, weights.size, BLOCK):
        size = min(BLOCK, weights.size - first)
        if has_filters and not _any(weights, first, size):
            continue
        _noise(first // 4, key, score)
        for i in range(size):
            score[i] = np.float64(logits[start + first + i]) + heat * score[i]
        for i in range(size):
            if score[i] > best and not (has_filters and weights[first + i] == 0):
                best, chosen = score[i], first + i
    return chosen


@njit(**INNER)
def _any(weights, first, size):
    found = np.int64(0)
    for i in range(first, first + size):
        found |= weights[i]
    return found != 0


@njit(**INNER)
def _word(number):
    return np.uint64(number) & WORD


@njit(**INNER)
def _noise(group, key, noise):
    """Gumbel noise of a block whose first id is four times `group`: see the reference's `gumbel_noise`."""
    position, low, high = key
    words = np.empty(BLOCK, np.uint64)
    for g in range(BLOCK // 4):
        c0, c1, c2, c3 = _word(group + g), position, NOTHING, NOTHING
        k0, k1 = low, high
        for _ in range(10):  # sampling_math's `philox`
            a, b = c0 * FACTOR_0, c2 * FACTOR_2
            c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & WORD, (a >> HALF) ^ c3 ^ k1, a & WORD
            k0, k1 = (k0 + STEP_0) & WORD, (k1 + STEP_1) & WORD
        words[4 * g], words[4 * g + 1], words[4 * g + 2], words[4 * g + 3] = c0, c1, c2, c3
    for i in range(BLOCK):
        noise[i] = _gumbel(np.float32(np.uint32(words[i])))


@njit(**INNER)
def _gumbel(word):
    """sampling_math's `gumbel`, to the bit."""
    uniform = min(word * UNIT + HALF_UNIT, BELOW_ONE)
    exponential = -_natural_log(ONE - uniform, -uniform)
    return -_natural_log(exponential, exponential - ONE)


@njit(**INNER)
def _natural_log(x, x_minus_1):
    """sampling_math's `natural_log`, to the bit."""
    bits = np.int32(np.float32(x).view(np.int32) - 0x3F3504F3)
    exponent = np.int32(bits >> 23)
    mantissa = np.int32((bits & 0x7FFFFF) + 0x3F3504F3).view(np.float32)
    f = x_minus_1 if exponent == 0 else mantissa - ONE
    square = f * f
    return np.float32(exponent) * LOG_2 + (f + (f * square * _polynomial(LOG_TERMS, f) - ONE_HALF * square))


@njit(**INNER)
def _weight_q44(scaled):
    """sampling_math's `weights_q44`, to the bit."""
    x = max(scaled, LOWEST_SCALED)
    nearest = x * LOG2_E + ONE_HALF
    whole = np.int32(nearest)  # cut off towards 0
    power = np.float32(whole) - np.float32(np.float32(whole) > nearest)
    r = x - power * LOG_2_HIGH - power * LOG_2_LOW
    exp = r * r * _polynomial(EXP_TERMS, r) + r + ONE
    bits = np.int32(np.float32(exp).view(np.int32) + (np.int32(power) << 23))
    return np.int64(np.int32(bits).view(np.float32) * UNITS)


@njit(**INNER)
def _polynomial(terms, x):
    value = terms[0]
    for term in terms[1:]:
        value = value * x + term
    return value


@njit(**INNER)
def _log_total(logits, start, size, peak):
    """The log of a row's sum of `exp(logit - peak)`; where the row has +inf, its mass lies there."""
    total = np.int64(0)
    for i in range(start, start + size):
        total += _weight_q44(_scaled(logits[i], peak, ONE))
    return np.float32(math.log(total * (1 / TOP_P_UNIT)))
