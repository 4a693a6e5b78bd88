"""Sampling on a CPU: the same tokens as the reference, a row at a time, in loops that round as the reference does.

A row starts with a weight for every id; each filter sets those to 0 that it takes out. What passes top-k and top-p is
found by a histogram of the logits' bits, with no sort. The draw computes noise for a block of ids at once, in wide
registers, and leaves blocks out in which nothing is kept.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.linear import linear
from octavo.kernels.sampling_math import EXP_FIT, LOG_FIT, TOP_P_UNIT, gap_below
from octavo.kernels.weights import Weight

BLOCK = 64  # ids whose noise is computed at once
SUM_BLOCK = 1024  # ids whose weights are added in float32; these sums are added in float64

DIGITS = (21, 11), (10, 11), (0, 10)  # a logit's 32 bits as three digits: their first bit and their width
LOG_TERMS, EXP_TERMS = (tuple(map(np.float32, reversed(fit))) for fit in (LOG_FIT, EXP_FIT))
FLOAT_MAX, FLOAT_TINY = np.finfo(np.float32).max, np.finfo(np.float32).tiny
NO_ID = np.uint32(0x007FFFFF)  # the rank of -inf


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row: see the reference."""
    return _choose(logits, temperature, top_k, top_p, min_p, seeds, positions, wants_logprobs=True)


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters: see the reference."""
    off, logits = torch.zeros_like(temperature), linear(hidden, weight)
    return _choose(logits, temperature, off.int(), 1 + off, off, seeds, positions, wants_logprobs=False)[0]


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
    wants_logprobs: bool,
) -> tuple[Tensor, Tensor]:
    num_seqs, vocab_size = logits.shape
    token_ids = torch.empty(num_seqs, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(num_seqs, dtype=torch.float32, device=logits.device)
    floats = (x.float().contiguous() for x in (logits, temperature, top_p, min_p))
    halves = seeds.contiguous().view(torch.int32)  # of a seed, the low one first
    integers = top_k.contiguous(), positions.contiguous(), halves, token_ids
    _sample(torch.float32, logits.numel(), *floats, logprobs, *integers, num_seqs, vocab_size, wants_logprobs)
    return token_ids, logprobs


@nk.cpu_kernel("fffff iiii qqq", exact=True)
def _sample(fields):
    logits, temperatures, top_ps, min_ps, logprobs = nk.float32_ptrs(fields, 0, 5)
    top_ks, positions, seeds, token_ids = nk.int32_ptrs(fields, 5, 4)
    num_seqs, vocab_size, wants_logprobs = nk.int_args(fields, 9, 3)
    first, last = nk.thread_range(num_seqs)
    weights, score = np.empty(vocab_size, np.int64), np.empty(BLOCK, np.float64)
    for row in range(first, last):
        start = row * vocab_size
        chosen = _first_maximum(logits, start, vocab_size)
        peak = logits[start + max(chosen, 0)]
        if chosen >= 0 and temperatures[row] > 0:
            temperature = min(temperatures[row], FLOAT_MAX)
            limits = top_ks[row], top_ps[row], min_ps[row]
            has_filters = top_ks[row] > 0 or top_ps[row] < 1 or min_ps[row] > 0
            if has_filters:
                _filter(logits, start, peak, temperature, limits, weights)
            key = np.uint32(positions[row]), np.uint32(seeds[2 * row]), np.uint32(seeds[2 * row + 1])
            chosen = _draw(logits, start, temperature, key, has_filters, weights, score)
        token_ids[row] = chosen
        logprobs[row] = np.nan
        if chosen >= 0 and wants_logprobs:
            gap = _scaled(logits[start + chosen], peak, np.float32(1))
            logprobs[row] = gap - _log_total(logits, start, vocab_size, peak)


@nk.cpu_kernel("ff i qqq", exact=True)
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
        weights[:] = 1
        if num < vocab_size:
            _keep_first(logits, start, weights, num)
        for i in range(vocab_size):
            if weights[i] != 0:
                places[out], places[out + 1] = i, np.int64(0x7FFFFFFF) - np.int64(_rank(logits[start + i]))
                out += 2


@njit
def _rank(x):
    """An integer that grows with the logit, the same for both zeros."""
    bits = np.float32(x + np.float32(0)).view(np.uint32)
    return np.uint32(bits ^ (np.uint32(np.uint32(bits).view(np.int32) >> np.int32(31)) | np.uint32(0x80000000)))


@njit
def _first_maximum(logits, start, size):
    """The lowest id of a row's largest logit; -1 if there is a NaN, or nothing above -inf."""
    best, nans = np.uint32(0), np.uint32(0)
    for i in range(start, start + size):
        best = max(best, _rank(logits[i]))
        nans |= np.uint32(logits[i] != logits[i])
    if nans != 0 or best <= NO_ID:
        return np.int64(-1)
    place = np.int64(0)
    while _rank(logits[start + place]) != best:
        place += 1
    return place


@njit
def _scaled(x, peak, inverse):
    """How far a logit lies below the largest, 0 at the largest even at +inf, times that factor."""
    return (np.float32(0) if x == peak else x - peak) * inverse


@njit
def _filter(logits, start, peak, temperature, limits, weights):
    """Leave a weight above 0 to what passes top-k, then top-p, then min-p."""
    top_k, top_p, min_p = limits
    inverse = min(np.float32(1) / temperature, FLOAT_MAX)
    weights[:] = 1
    if 0 < top_k < weights.size:
        _keep_first(logits, start, weights, top_k)
    if top_p < 1:
        total = np.int64(0)
        for i in range(weights.size):
            weights[i] = _weight_q44(_scaled(logits[start + i], peak, inverse)) if weights[i] != 0 else 0
            total += weights[i]
        wanted = np.int64(np.ceil(np.float64(total) * np.float64(top_p)))
        _keep_first(logits, start, weights, max(wanted, 1))
    if min_p > 0:
        limited = np.float32(min(max(min_p, FLOAT_TINY), np.float32(1)))
        floor = _natural_log(limited, limited - np.float32(1))
        for i in range(weights.size):
            weights[i] = weights[i] if _scaled(logits[start + i], peak, inverse) >= floor else 0


@njit
def _keep_first(logits, start, weights, wanted):
    """Set the weight of an id to 0 if those that rank before it weigh `wanted` or more; ties rank by id.

    What ranks before the last id that stays is found digit by digit, from the highest.
    """
    mass = np.empty(2**11, np.int64)
    above, last = np.int64(0), np.uint64(0)
    for shift, width in DIGITS:
        mass[:] = 0
        for i in range(weights.size):
            rank = np.uint64(_rank(logits[start + i]))
            if rank >> np.uint64(shift + width) == last >> np.uint64(shift + width):
                mass[(rank >> np.uint64(shift)) & np.uint64(2**width - 1)] += weights[i]
        digit = 2**width - 1
        while digit > 0 and above + mass[digit] < wanted:
            above += mass[digit]
            digit -= 1
        last |= np.uint64(digit) << np.uint64(shift)
    rank_of_last = np.uint32(last)
    for i in range(weights.size):
        weights[i] = weights[i] if _rank(logits[start + i]) >= rank_of_last else 0
    for i in range(weights.size):
        if _rank(logits[start + i]) == rank_of_last:
            weight = weights[i]
            weights[i] = weight if above < wanted else 0
            above += weight


@njit
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


@njit
def _any(weights, first, size):
    found = np.int64(0)
    for i in range(first, first + size):
        found |= weights[i]
    return found != 0


@njit
def _noise(group, key, noise):
    """Gumbel noise of a block whose first id is four times `group`: see the reference's `gumbel_noise`."""
    position, low, high = key
    words = np.empty(BLOCK, np.uint32)
    for g in range(BLOCK // 4):
        c0, c1, c2, c3 = np.uint32(group + g), position, np.uint32(0), np.uint32(0)
        k0, k1 = low, high
        for _ in range(10):  # sampling_math's `philox`
            a, b = np.uint64(c0) * np.uint64(0xD2511F53), np.uint64(c2) * np.uint64(0xCD9E8D57)
            c0, c2 = np.uint32(b >> np.uint64(32)) ^ c1 ^ k0, np.uint32(a >> np.uint64(32)) ^ c3 ^ k1
            c1, c3 = np.uint32(b), np.uint32(a)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        words[4 * g], words[4 * g + 1], words[4 * g + 2], words[4 * g + 3] = c0, c1, c2, c3
    for i in range(BLOCK):
        noise[i] = _gumbel(words[i])


@njit
def _gumbel(word):
    """sampling_math's `gumbel`, to the bit."""
    uniform = np.float32(word) * np.float32(2.0**-32) + np.float32(2.0**-33)
    uniform = min(uniform, np.float32(1 - 2.0**-24))
    exponential = -_natural_log(np.float32(1) - uniform, -uniform)
    return -_natural_log(exponential, exponential - np.float32(1))


@njit
def _natural_log(x, x_minus_1):
    """sampling_math's `natural_log`, to the bit."""
    bits = np.int32(np.float32(x).view(np.int32) - np.int32(0x3F3504F3))
    exponent = np.int32(bits >> np.int32(23))
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(np.float32)
    f = x_minus_1 if exponent == 0 else mantissa - np.float32(1)
    square = f * f
    curve = f * square * _polynomial(LOG_TERMS, f) - np.float32(0.5) * square
    return np.float32(exponent) * np.float32(0.69314718) + (f + curve)


@njit
def _weight_q44(scaled):
    """sampling_math's `weights_q44`, to the bit."""
    x = max(scaled, np.float32(-64))
    power = np.floor(x * np.float32(1.4426950) + np.float32(0.5))
    r = x - power * np.float32(0.693359375) - power * np.float32(-2.1219444e-4)
    exp = r * r * _polynomial(EXP_TERMS, r) + r + np.float32(1)
    bits = np.int32(np.float32(exp).view(np.int32) + np.int32(np.int32(power) << np.int32(23)))
    return np.int64(np.int32(bits).view(np.float32) * np.float32(TOP_P_UNIT))


@njit
def _polynomial(terms, x):
    value = terms[0]
    for term in terms[1:]:
        value = value * x + term
    return value


@njit
def _log_total(logits, start, size, peak):
    """The log of a row's sum of `exp(logit - peak)`; where the row has +inf, its mass lies there."""
    total = np.float64(0)
    for first in range(start, start + size, SUM_BLOCK):
        total += _sum_exp(logits, first, min(first + SUM_BLOCK, start + size), peak)
    return np.float32(np.log(total))


@njit(fastmath=nk.FASTMATH_REASSOC)
def _sum_exp(logits, first, last, peak):
    total = np.float32(0)
    for i in range(first, last):
        total += nk.exp(_scaled(logits[i], peak, np.float32(1)))
    return total
