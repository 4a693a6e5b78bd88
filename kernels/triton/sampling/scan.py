"""The one read of the logits: what sample and top_logprobs know of a row after it.

A row is cut into tiles, one program each, so that few rows still fill a GPU. A program leaves its tile's maximum and
`sum exp(logit - maximum)`, the key of the maximum of each group of neighbouring ids, and, for rows that no filter
touches, the tile's best (score, id). Whatever follows finds its few groups by their maxima, reads those again, from the
cache by then, and leaves the others alone. Maxima, and scores with ties to the lower id, do not depend on the tiles.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import Config
from octavo.kernels.triton.sampling.sampling_math import (
    FLOAT_MAX,
    NO_KEY,
    best_of,
    gap_below,
    gumbel_noise,
    load_logits,
    natural_log,
    to_key,
)


@triton.jit
def row_numbers(num_rows, ROWS: tl.constexpr):
    """Of this program, `[ROWS, 1]` int64; past the last row it is repeated, so that no access needs a mask for it."""
    return tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], num_rows - 1)


@triton.jit
def allowed_words(allowed_ptr, rows, VOCAB_SIZE: tl.constexpr):
    """Where the masks of the rows begin."""
    return allowed_ptr + rows * ((VOCAB_SIZE + 31) // 32)


@triton.jit
def load_allowed(allowed_row, ids, inside):
    """Whether the mask's bit of each id is 1."""
    return ((tl.load(allowed_row + (ids >> 5), inside, 0) >> (ids & 31)) & 1) != 0


@triton.jit
def load_parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, rows, VOCAB_SIZE: tl.constexpr):
    """Each `[ROWS, 1]`: the temperature, 0 for greedy; k, p and the floor of log min-p; whether any of them filters."""
    temperature, min_p = tl.load(temperature_ptr + rows), tl.load(min_p_ptr + rows)
    k, p = tl.load(top_k_ptr + rows), tl.load(top_p_ptr + rows)
    drawn = temperature > 0
    temperature = tl.where(drawn, tl.minimum(temperature, FLOAT_MAX), 0.0)
    k = tl.where(drawn & (k > 0) & (k < VOCAB_SIZE), k, VOCAB_SIZE)
    p = tl.where(drawn & (p < 1), p, 1.0)
    clamped = tl.minimum(tl.maximum(min_p, 1.1754943508222875e-38), 1.0)
    floor = tl.where(drawn & (min_p > 0), natural_log(clamped, clamped - 1.0), -float("inf"))
    return temperature, k, p, floor, (k < VOCAB_SIZE) | (p < 1) | (floor > -float("inf"))


@triton.jit(do_not_specialize=["num_rows"])
def _scan_kernel(
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
    DRAW: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    tile = tl.program_id(1)
    rows = row_numbers(num_rows, ROWS)
    ids = tile * TILE + tl.arange(0, TILE)[None, :]  # [1, TILE]
    x = load_logits(logits_ptr + rows * stride + ids, ids < VOCAB_SIZE)  # [ROWS, TILE]

    has_nan = tl.max((x != x).to(tl.int32), 1, keep_dims=True) > 0
    x = tl.where(x != x, -float("inf"), x)
    peak = tl.max(x, 1, keep_dims=True)
    at = rows * NUM_TILES + tile
    tl.store(tile_peak_ptr + at, tl.where(has_nan, float("nan"), peak))
    tl.store(tile_sum_ptr + at, tl.sum(tl.exp(gap_below(x, peak)), 1, keep_dims=True))
    if allowed_ptr is not None:
        allowed = load_allowed(allowed_words(allowed_ptr, rows, VOCAB_SIZE), ids, ids < VOCAB_SIZE)
        x = tl.where(allowed, x, -float("inf"))

    highest = tl.max(tl.reshape(x, [ROWS, TILE // GROUP, GROUP]), 2)  # [ROWS, TILE / GROUP]
    groups = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)[None, :]
    tl.store(group_key_ptr + rows * NUM_GROUPS + groups, to_key(highest), groups < NUM_GROUPS)

    if DRAW:
        temperature, _, _, _, filtered = load_parameters(
            temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, rows, VOCAB_SIZE
        )
        if tl.min(filtered.to(tl.int32)) == 0:
            score = x.to(tl.float64)
            if tl.max(temperature) > 0:
                quads = tile * (TILE // 4) + tl.arange(0, TILE // 4)[None, :] + tl.zeros([ROWS, 1], tl.int32)
                seeds, positions = tl.load(seeds_ptr + rows), tl.load(positions_ptr + rows)
                score += temperature.to(tl.float64) * gumbel_noise(seeds, positions, quads).to(tl.float64)
            best, token = best_of(score, ids)
            tl.store(tile_score_ptr + at, best)
            tl.store(tile_id_ptr + at, token)


@triton.jit
def numbers(COUNT: tl.constexpr):
    """`[1, 256]` at least: a tensor with fewer elements than the program has threads, each thread would hold whole."""
    return tl.arange(0, max(256, triton.next_power_of_2(COUNT)))[None, :]


@triton.jit
def row_softmax(tile_peak_ptr, tile_sum_ptr, rows, NUM_TILES: tl.constexpr):
    """Each `[ROWS, 1]`: the row's maximum, the log of `sum exp(logit - maximum)`, whether the row can be drawn from."""
    tiles = numbers(NUM_TILES)
    there = tiles < NUM_TILES
    peaks = tl.load(tile_peak_ptr + rows * NUM_TILES + tiles, there, -float("inf"))
    sums = tl.load(tile_sum_ptr + rows * NUM_TILES + tiles, there, 0.0)
    has_nan = tl.max((peaks != peaks).to(tl.int32), 1, keep_dims=True) > 0
    peak = tl.max(tl.where(peaks != peaks, -float("inf"), peaks), 1, keep_dims=True)
    total = tl.sum(tl.exp(gap_below(peaks, peak)) * sums, 1, keep_dims=True)
    valid = (peak > -float("inf")) & (has_nan == 0)
    total = tl.where(valid, total, 1.0)
    return peak, natural_log(total, total - 1.0), valid


@triton.jit
def load_group_keys(key_row, NUM_GROUPS: tl.constexpr):
    groups = numbers(NUM_GROUPS)
    return tl.load(key_row + groups, groups < NUM_GROUPS, NO_KEY)


@triton.jit
def list_groups(listed, list_row, NUM_GROUPS: tl.constexpr):
    """Write the numbers of the listed groups `[ROWS, NUM_GROUPS]` to list_row, ascending; returns how many."""
    groups = numbers(NUM_GROUPS)
    tl.debug_barrier()  # every thread has read the list before this one
    tl.store(list_row + tl.cumsum(listed.to(tl.int32), 1) - 1, groups + listed.to(tl.int32) * 0, listed)
    tl.debug_barrier()
    return tl.sum(listed.to(tl.int32), 1, keep_dims=True)


@triton.jit
def load_chunk(
    logits_row,
    allowed_row,
    list_row,
    start,
    count,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The ids, ascending, and keys of the groups that stand in the list from start on: both `[ROWS, CHUNK]`."""
    lane = tl.arange(0, CHUNK)[None, :]
    slot = start + lane // GROUP
    ids = tl.load(list_row + slot, slot < count, 0) * GROUP + lane % GROUP
    inside = (slot < count) & (ids < VOCAB_SIZE)
    key = to_key(load_logits(logits_row + ids, inside))  # of forbidden ids too: loads with one mask are wide
    if allowed_row is not None:
        inside &= load_allowed(allowed_row, ids, inside)
    return ids, tl.where(inside, key, NO_KEY)


@dataclass(frozen=True)
class Scan:
    """What is known of each row: `[num_rows, num_tiles]`, of group_key `[num_rows, num_groups]`; and the launch."""

    tile_peak: Tensor
    tile_sum: Tensor
    tile_score: Tensor
    tile_id: Tensor
    group_key: Tensor
    config: Config

    @property
    def sizes(self) -> dict[str, int]:
        """The constants that every kernel after this one takes."""
        sizes = {"NUM_TILES": self.tile_peak.shape[1], "NUM_GROUPS": self.group_key.shape[1]}
        return sizes | {name: self.config[name] for name in ("GROUP", "ROWS")}


def scan(logits: Tensor, parameters: tuple[Tensor, ...] | None, allowed: Tensor | None = None) -> Scan:
    """Read logits `[num_rows, vocab_size]` once; parameters are `sample`'s per-row tensors, None to draw nothing.

    allowed: `sample`'s. Of the others only peaks and sums know; keys and scores hold -inf in their place.
    """
    (num_rows, vocab_size), config = logits.shape, launch.scan(logits.device, logits.shape[1])
    num_tiles, num_groups = (triton.cdiv(vocab_size, config[name]) for name in ("TILE", "GROUP"))
    tiles, groups = (num_rows, num_tiles), (num_rows, num_groups)
    found = Scan(
        torch.empty(tiles, dtype=torch.float32, device=logits.device),
        torch.empty(tiles, dtype=torch.float32, device=logits.device),
        torch.empty(tiles, dtype=torch.float64, device=logits.device),
        torch.empty(tiles, dtype=torch.int32, device=logits.device),
        torch.empty(groups, dtype=torch.int32, device=logits.device),
        config,
    )
    _scan_kernel[triton.cdiv(num_rows, config["ROWS"]), num_tiles](
        logits,
        logits.stride(0),
        allowed,
        *(parameters or (None,) * 6),
        found.tile_peak,
        found.tile_sum,
        found.tile_score,
        found.tile_id,
        found.group_key,
        num_rows,
        DRAW=parameters is not None,
        VOCAB_SIZE=vocab_size,
        NUM_TILES=num_tiles,
        NUM_GROUPS=num_groups,
        **config,
    )
    return found
