"""sample: logits to token ids in two kernels, with no sort and no probabilities in memory.

    token = argmax over the survivors of `logit + temperature * noise(seed, position, id)`; ties to the lower id

The scan (scan.py) reads the logits, many programs a row, and has drawn already where no filter acts. Here one
program a row merges its tiles; where a filter acts it finds the cut of top-k, then that of top-p (top_k_top_p.py),
and takes the best score of the groups that reach the cuts and the floor of min-p. Where a mask is given, all but the
log-probability sees -inf in place of what it forbids. All it reads again is in the cache.
What decides is compared exactly: scores, integer masses, keys, ids. So a token does not depend on tiles, on the rows
that share a program or on the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_columns, check_logits, check_tensor
from octavo.kernels.triton.sampling.sampling_math import (
    FLOAT_MAX,
    NO_CUT,
    best_of,
    from_key,
    gap_below,
    gumbel_noise,
    load_logits,
)
from octavo.kernels.triton.sampling.scan import (
    allowed_words,
    list_groups,
    load_chunk,
    load_group_keys,
    load_parameters,
    numbers,
    row_numbers,
    row_softmax,
    scan,
)
from octavo.kernels.triton.sampling.top_k_top_p import find_cut, is_kept


@triton.jit
def _draw_survivor(
    temperature,
    floor,
    scale,
    peak,
    cut_key,
    cut_id,
    seeds,
    positions,
    logits_row,
    allowed_row,
    key_row,
    list_row,
    VOCAB_SIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The id `[ROWS, 1]` with the best score of those that reach the cut and the floor of min-p."""
    keys = load_group_keys(key_row, NUM_GROUPS)
    reached = (keys >= cut_key) & (gap_below(from_key(keys), peak) * scale >= floor)
    count = list_groups(reached, list_row, NUM_GROUPS)
    best, token = tl.full(peak.shape, -float("inf"), tl.float64), tl.zeros_like(count)
    lane = tl.arange(0, CHUNK // 4)[None, :]
    for start in range(0, tl.max(count), CHUNK // GROUP):
        ids, key = load_chunk(logits_row, allowed_row, list_row, start, count, VOCAB_SIZE, GROUP, CHUNK)
        x = from_key(key)
        kept = is_kept(key, ids, cut_key, cut_id) & (gap_below(x, peak) * scale >= floor)
        slot = start + lane // (GROUP // 4)
        quads = tl.load(list_row + slot, slot < count, 0) * (GROUP // 4) + lane % (GROUP // 4)
        score = x.to(tl.float64) + temperature.to(tl.float64) * gumbel_noise(seeds, positions, quads).to(tl.float64)
        chunk_best, winner = best_of(tl.where(kept, score, -float("inf")), ids)
        token = tl.where(chunk_best > best, winner, token)  # later chunks hold higher ids: a tie changes nothing
        best = tl.maximum(best, chunk_best)
    return token


@triton.jit(do_not_specialize=["num_rows"])
def _choose_kernel(
    token_ids_ptr,
    logprobs_ptr,
    list_ptr,
    logits_ptr,
    stride,
    allowed_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    tile_peak_ptr,
    tile_sum_ptr,
    tile_score_ptr,
    tile_id_ptr,
    group_key_ptr,
    num_rows,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = row_numbers(num_rows, ROWS)
    temperature, k, p, floor, filtered = load_parameters(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, rows, VOCAB_SIZE
    )
    peak, log_total, valid = row_softmax(tile_peak_ptr, tile_sum_ptr, rows, NUM_TILES)
    logits_row, key_row = logits_ptr + rows * stride, group_key_ptr + rows * NUM_GROUPS
    raw_peak, allowed_row = peak, allowed_ptr
    if allowed_ptr is not None:
        allowed_row = allowed_words(allowed_ptr, rows, VOCAB_SIZE)
        peak = from_key(tl.max(load_group_keys(key_row, NUM_GROUPS), 1, keep_dims=True))
        valid &= peak > -float("inf")

    tiles = rows * NUM_TILES + numbers(NUM_TILES)
    scored = (numbers(NUM_TILES) < NUM_TILES) & (filtered == 0)
    score = tl.load(tile_score_ptr + tiles, scored, -float("inf"))
    _, token = best_of(score, tl.load(tile_id_ptr + tiles, scored, 0))
    if tl.max(filtered.to(tl.int32)) > 0:
        list_row = list_ptr + rows * NUM_GROUPS
        scale = tl.where(temperature > 0, tl.minimum(tl.div_rn(1.0, temperature), FLOAT_MAX), 0.0)
        cut_key, cut_id = tl.full([ROWS, 1], NO_CUT, tl.int32), tl.full([ROWS, 1], VOCAB_SIZE, tl.int32)
        if tl.min(k) < VOCAB_SIZE:
            cut_key, cut_id = find_cut(
                k, cut_key, cut_id, scale, peak, logits_row, allowed_row, key_row, list_row,
                False, VOCAB_SIZE, NUM_GROUPS, GROUP, CHUNK,
            )  # fmt: skip
        if tl.min(p) < 1:
            cut_key, cut_id = find_cut(
                p, cut_key, cut_id, scale, peak, logits_row, allowed_row, key_row, list_row,
                True, VOCAB_SIZE, NUM_GROUPS, GROUP, CHUNK,
            )  # fmt: skip
        seeds, positions = tl.load(seeds_ptr + rows), tl.load(positions_ptr + rows)
        survivor = _draw_survivor(
            temperature, floor, scale, peak, cut_key, cut_id, seeds, positions,
            logits_row, allowed_row, key_row, list_row, VOCAB_SIZE, NUM_GROUPS, GROUP, CHUNK,
        )  # fmt: skip
        token = tl.where(filtered, survivor, token)

    logprob = gap_below(load_logits(logits_row + token, valid), raw_peak) - log_total
    tl.store(token_ids_ptr + rows, tl.where(valid, token, -1))
    tl.store(logprobs_ptr + rows, tl.where(valid, logprob, float("nan")))


COLUMNS = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
    "positions": torch.int32,
}


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
    """Choose one token a row; returns `(token_ids int32, logprobs float32)`, both `[num_seqs]`.

    logits `[num_seqs, vocab_size]` in float32, float16 or bfloat16, rows strided as they like; vocab_size up to
    262,144. Per row, contiguous: temperature float32 (0 takes the first maximum), top_k int32 (0 off), top_p float32 (1
    off), min_p float32 (0 off), seeds int64, positions int32. allowed: int32 `[num_seqs, ceil(vocab_size / 32)]`,
    contiguous: a bit for each id that may be chosen. Row by row the choice of the reference of the same name.
    A row with a NaN, or with no logit above -inf, gets id -1 and log-probability NaN, and the others do not notice.
    ValueError on a wrong shape, dtype, device or stride; values are not looked at.
    """
    parameters = (temperature, top_k, top_p, min_p, seeds, positions)
    check_logits(logits)
    check_columns(logits, COLUMNS, parameters)
    num_rows, vocab_size = logits.shape
    if allowed is not None:
        check_tensor("allowed", allowed, (num_rows, triton.cdiv(vocab_size, 32)), logits.device, torch.int32)
    token_ids = torch.empty_like(positions)
    logprobs = torch.empty_like(temperature)
    if num_rows == 0:
        return token_ids, logprobs
    found = scan(logits, parameters, allowed)
    groups = torch.empty_like(found.group_key)
    config = launch.choose(logits.device, vocab_size)
    _choose_kernel[(triton.cdiv(num_rows, found.config["ROWS"]),)](
        token_ids,
        logprobs,
        groups,
        logits,
        logits.stride(0),
        allowed,
        *parameters,
        found.tile_peak,
        found.tile_sum,
        found.tile_score,
        found.tile_id,
        found.group_key,
        num_rows,
        VOCAB_SIZE=vocab_size,
        **found.sizes,
        **config,
    )
    return token_ids, logprobs
