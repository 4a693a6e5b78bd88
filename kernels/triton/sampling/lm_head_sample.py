"""lm_head_sample: the LM head and the draw in one; logits live in registers, a tile at a time.

    token = argmax of `logit + temperature * noise(seed, position, id)`, logit = hidden @ weight.T; ties to the lower id

Where no filter acts and nobody asks for log-probabilities, a token needs no more of its logits than their best score,
and a maximum can be taken in any order. A program computes one tile of logits exactly as `linear` does, the same tiles,
the same order of k, rounded to the dtype of hidden, adds the noise (sampling_math.py) and keeps each row's best (score,
id); a second kernel takes the best of the tiles. So the choice is that of `linear` and `sample`, to the bit.
The idea is from https://arxiv.org/abs/2603.15854
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_alike, check_columns, check_matrix, dense_weight
from octavo.kernels.triton.sampling.sampling_math import FLOAT_MAX, best_of, gumbel_noise
from octavo.kernels.weights import Weight


@triton.jit(do_not_specialize=["num_rows"])
def _score_kernel(
    tile_score_ptr,
    tile_id_ptr,
    hidden_ptr,
    weight_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    num_rows,
    stride_hidden,
    stride_weight,
    VOCAB_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    NUM_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(1)
    m, n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m_live, n_live = m[:, None] < num_rows, n[:, None] < VOCAB_SIZE
    hidden_ptrs = hidden_ptr + m.to(tl.int64)[:, None] * stride_hidden + k[None, :]
    weight_ptrs = weight_ptr + n.to(tl.int64)[:, None] * stride_weight + k[None, :]

    y = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        if DIM % BLOCK_K == 0:
            hidden = tl.load(hidden_ptrs + start, m_live, 0.0)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_ptrs + start, n_live, 0.0)  # [BLOCK_N, BLOCK_K]
        else:
            k_live = start + k[None, :] < DIM
            hidden = tl.load(hidden_ptrs + start, m_live & k_live, 0.0)
            weight = tl.load(weight_ptrs + start, n_live & k_live, 0.0)
        y = tl.dot(weight, hidden.T, y, input_precision="ieee")
    x = y.T.to(hidden_ptr.dtype.element_ty).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    x = tl.where(n[None, :] < VOCAB_SIZE, x, -float("inf"))

    rows = tl.minimum(m, num_rows - 1)[:, None]  # past the last row it is repeated
    temperature = tl.load(temperature_ptr + rows)
    temperature = tl.where(temperature > 0, tl.minimum(temperature, FLOAT_MAX), 0.0)
    has_nan = tl.max((x != x).to(tl.int32), 1, keep_dims=True) > 0
    score = tl.where(x != x, -float("inf"), x).to(tl.float64)
    if tl.max(temperature) > 0:
        quads = tile * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)[None, :] + tl.zeros([BLOCK_M, 1], tl.int32)
        noise = gumbel_noise(tl.load(seeds_ptr + rows), tl.load(positions_ptr + rows), quads)
        score += temperature.to(tl.float64) * noise.to(tl.float64)
    best, token = best_of(score, n[None, :])
    at = rows.to(tl.int64) * NUM_TILES + tile
    tl.store(tile_score_ptr + at, tl.where(has_nan, float("nan"), best), m_live)
    tl.store(tile_id_ptr + at, token, m_live)


@triton.jit
def _best_kernel(token_ids_ptr, tile_score_ptr, tile_id_ptr, NUM_TILES: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best, token = tl.full([1, 1], -float("inf"), tl.float64), tl.full([1, 1], -1, tl.int32)
    has_nan = tl.zeros([1, 1], tl.int32)
    for start in range(0, NUM_TILES, TILE):
        tiles = start + tl.arange(0, TILE)[None, :]
        score = tl.load(tile_score_ptr + row * NUM_TILES + tiles, tiles < NUM_TILES, -float("inf"))
        ids = tl.load(tile_id_ptr + row * NUM_TILES + tiles, tiles < NUM_TILES, 0)
        has_nan = tl.maximum(has_nan, tl.max((score != score).to(tl.int32), 1, keep_dims=True))
        tile_best, winner = best_of(tl.where(score != score, -float("inf"), score), ids)
        token = tl.where(tile_best > best, winner, token)  # later tiles hold higher ids: a tie changes nothing
        best = tl.maximum(best, tile_best)
    tl.store(token_ids_ptr + row + tl.zeros([1, 1], tl.int32), tl.where(has_nan > 0, -1, token))


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The LM head and an unfiltered draw in one: the ids that `sample` chooses from `linear(hidden, weight)`.

    hidden `[num_seqs, dim]` and weight `[vocab_size, dim]` of one dtype (float32, float16, bfloat16), rows strided as
    they like; temperature float32 (0 takes the first maximum), seeds int64, positions int32, all `[num_seqs]` and
    contiguous. Returns token_ids `[num_seqs]` int32, -1 where a row's logits have a NaN or none above -inf. ValueError
    on a wrong shape, dtype, device or stride; values are not looked at.
    """
    check_matrix("hidden", hidden, "[num_seqs, dim]")
    weight = dense_weight(hidden, weight, "vocab_size")
    if weight.shape[0] == 0:
        raise ValueError(f"weight must have a vocab_size of 1 or more, not {list(weight.shape)}")
    check_alike(hidden, hidden=hidden)
    dtypes = {"temperature": torch.float32, "seeds": torch.int64, "positions": torch.int32}
    check_columns(hidden, dtypes, (temperature, seeds, positions))
    (num_rows, dim), vocab_size = hidden.shape, weight.shape[0]
    token_ids = torch.empty_like(positions)
    if num_rows == 0:
        return token_ids
    config = launch.lm_head(hidden.device, hidden.dtype, num_rows, vocab_size)
    num_tiles = triton.cdiv(vocab_size, config["BLOCK_N"])
    tile_score = torch.empty(num_rows, num_tiles, dtype=torch.float64, device=hidden.device)
    tile_id = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=hidden.device)
    _score_kernel[triton.cdiv(num_rows, config["BLOCK_M"]), num_tiles](
        tile_score,
        tile_id,
        hidden,
        weight,
        temperature,
        seeds,
        positions,
        num_rows,
        hidden.stride(0),
        weight.stride(0),
        VOCAB_SIZE=vocab_size,
        DIM=dim,
        NUM_TILES=num_tiles,
        **config,
    )
    _best_kernel[(num_rows,)](token_ids, tile_score, tile_id, NUM_TILES=num_tiles, **launch.best())
    return token_ids
