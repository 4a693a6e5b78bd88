"""top_logprobs: the most likely ids of each row and their log-probabilities, without a sort.

    logprob = logit - max - log(sum exp(logit - max)), under the raw softmax; ties to the lower id

The same scan as for a draw (scan.py) reads the logits; the same search as for top-k (top_k_top_p.py) finds
the last of the `num` ids. What remains is to call out, best first, the ids of the at most `num` groups that reach it:
each is the largest (key, lower id) below the one before.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_logits
from octavo.kernels.triton.sampling.sampling_math import NO_CUT, NO_KEY, best_of, from_key, gap_below
from octavo.kernels.triton.sampling.scan import (
    list_groups,
    load_chunk,
    load_group_keys,
    row_numbers,
    row_softmax,
    scan,
)
from octavo.kernels.triton.sampling.top_k_top_p import find_cut


@triton.jit(do_not_specialize=["num_rows", "num"])
def _rank_kernel(
    ids_ptr,
    logprobs_ptr,
    list_ptr,
    logits_ptr,
    stride,
    tile_peak_ptr,
    tile_sum_ptr,
    group_key_ptr,
    num_rows,
    num,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = row_numbers(num_rows, ROWS)
    peak, log_total, valid = row_softmax(tile_peak_ptr, tile_sum_ptr, rows, NUM_TILES)
    logits_row, key_row = logits_ptr + rows * stride, group_key_ptr + rows * NUM_GROUPS
    list_row = list_ptr + rows * NUM_GROUPS
    no_cut, every_id = tl.full([ROWS, 1], NO_CUT, tl.int32), tl.full([ROWS, 1], VOCAB_SIZE, tl.int32)
    limit = tl.zeros([ROWS, 1], tl.int32) + num
    cut_key, _ = find_cut(
        limit, no_cut, every_id, peak, peak, logits_row, None, key_row, list_row,
        False, VOCAB_SIZE, NUM_GROUPS, GROUP, CHUNK,
    )  # fmt: skip
    count = list_groups(load_group_keys(key_row, NUM_GROUPS) >= cut_key, list_row, NUM_GROUPS)

    last_key, last_id = tl.full([ROWS, 1], 0x7FFFFFFF, tl.int32), no_cut
    for place in range(num):
        best, token = no_cut, every_id
        for start in range(0, tl.max(count), CHUNK // GROUP):
            ids, key = load_chunk(logits_row, None, list_row, start, count, VOCAB_SIZE, GROUP, CHUNK)
            below = (key < last_key) | ((key == last_key) & (ids > last_id))
            chunk_best, winner = best_of(tl.where(below, key, NO_KEY), ids)
            token = tl.where(chunk_best > best, winner, token)  # later chunks hold higher ids: a tie changes nothing
            best = tl.maximum(best, chunk_best)
        logprob = gap_below(from_key(best), peak) - log_total
        tl.store(ids_ptr + rows * num + place, tl.where(valid, token, -1))
        tl.store(logprobs_ptr + rows * num + place, tl.where(valid, logprob, float("nan")))
        last_key, last_id = best, token


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row, best first, ties to the lower id: `(ids int32, logprobs float32)`.

    logits `[num_seqs, vocab_size]` in float32, float16 or bfloat16, rows strided as they like; num from 1 to the
    vocab_size. Both results are `[num_seqs, num]`. A row with a NaN, or with no logit above -inf, gets ids -1 and
    log-probabilities NaN. ValueError on a wrong shape, dtype, stride or num.
    """
    check_logits(logits)
    num_rows, vocab_size = logits.shape
    if not 1 <= num <= vocab_size:
        raise ValueError(f"num must be from 1 to the vocab_size {vocab_size}, not {num}")
    ids = torch.empty(num_rows, num, dtype=torch.int32, device=logits.device)
    logprobs = torch.empty(num_rows, num, dtype=torch.float32, device=logits.device)
    if num_rows == 0:
        return ids, logprobs
    found = scan(logits, None)
    _rank_kernel[(triton.cdiv(num_rows, found.config["ROWS"]),)](
        ids,
        logprobs,
        torch.empty_like(found.group_key),
        logits,
        logits.stride(0),
        found.tile_peak,
        found.tile_sum,
        found.group_key,
        num_rows,
        num,
        VOCAB_SIZE=vocab_size,
        **found.sizes,
        **launch.choose(logits.device, vocab_size),
    )
    return ids, logprobs
