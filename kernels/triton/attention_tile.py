"""What causal_attention and paged_attention share, so that the same query gets the same bits from both.

    o = sum_j softmax_j(scale * q . k_j) v_j, over the keys that a query may see

A query's keys are cut at absolute multiples of BLOCK_N from position 0 and folded in tile by tile: the largest score
so far m (in powers of two), the sum l of `p = 2^(s * scale * log2 e - m)` and the accumulator `sum p v`, in float32,
rescaled by `alpha = 2^(m_old - m_new)` when m grows. A key that a query may not see scores a true -inf, so a tile with
none that it may see leaves the row's bits alone (p is 0, alpha is 1), and a row that sees no key at all keeps m = -inf
and ends as zeros. A multiply-add that could be contracted is spelled `fma`, so no two loops round differently.
The online softmax is from https://arxiv.org/abs/2205.14135
"""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
SECTION = 4  # heads that advance side by side in prefill


@triton.jit
def _scores(q, k, PRECISION: tl.constexpr):
    """`q @ k.T` of q `[M, D]` and k `[N, D]`."""
    RUN: tl.constexpr = 32
    if q.dtype == tl.float32 and q.shape[1] > RUN:
        # Without a tensor core each thread holds whole operands: cut D, or they outgrow its registers.
        RUNS: tl.constexpr = q.shape[1] // RUN
        q_runs = tl.permute(tl.reshape(q, (q.shape[0], RUNS, RUN)), (1, 0, 2))
        k_runs = tl.permute(tl.reshape(k, (k.shape[0], RUNS, RUN)), (1, 2, 0))
        return tl.sum(tl.dot(q_runs, k_runs, input_precision=PRECISION), 0)
    else:
        return tl.dot(q, tl.trans(k), input_precision=PRECISION)


@triton.jit
def attend(q, k, v, visible, m_i, l_i, acc, scale_log2, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Fold one tile into m, l, acc: q `[M, D]`, k and v `[N, D]`, visible `[M, N]`, unread unless MASKED."""
    s = _scores(q, k, PRECISION)  # [M, N]
    if MASKED:
        s = tl.where(visible, s, -float("inf"))
    m_new = tl.maximum(m_i, tl.max(s, 1) * scale_log2)
    shift = tl.where(m_new == -float("inf"), 0.0, m_new)  # -inf - -inf would be NaN
    alpha = tl.exp2(m_i - shift)
    p = tl.exp2(tl.fma(s, scale_log2, -shift[:, None]))
    l_i = tl.fma(l_i, alpha, tl.sum(p, 1))
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return m_new, l_i, acc


@triton.jit
def load_rows(pointers, row, num_rows, column, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """Rows `[N, D]` of q, k or v; zeros from num_rows on (if MASKED: dead memory may hold NaN) and beyond the head."""
    PADDED: tl.constexpr = column.shape[0] > HEAD_DIM
    if MASKED and PADDED:
        return tl.load(pointers, mask=(row < num_rows)[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=(row < num_rows)[:, None], other=0.0)
    elif PADDED:
        return tl.load(pointers, mask=(column < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


# fmt: off
@triton.jit
def attend_cache(
    q, k_cache_ptr, v_cache_ptr, table_ptr, stride_block, stride_slot,
    position, column, first, last, m_i, l_i, acc, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):
    """Fold cached keys `[first, last)` into m, l and acc; without MASKED all queries must see them all."""
    lane = tl.arange(0, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        key = start + lane
        if MASKED:
            block = tl.load(table_ptr + key // BLOCK_SIZE, mask=key < last, other=0)  # [BLOCK_N]
        else:
            block = tl.load(table_ptr + key // BLOCK_SIZE)
        slot = block.to(tl.int64) * stride_block + key % BLOCK_SIZE * stride_slot
        k = load_rows(k_cache_ptr + slot[:, None] + column[None, :], key, last, column, HEAD_DIM, MASKED)
        v = load_rows(v_cache_ptr + slot[:, None] + column[None, :], key, last, column, HEAD_DIM, MASKED)
        visible = key[None, :] <= position[:, None]
        m_i, l_i, acc = attend(q, k, v, visible, m_i, l_i, acc, scale_log2, MASKED, PRECISION)
    return m_i, l_i, acc
# fmt: on


@triton.jit
def normalise(l_i, acc):
    """`acc / l`, and zeros for a row that saw no key."""
    return acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]


@triton.jit
def zero_rows(
    o_ptr, first, last, step, head, column, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr
):
    """Zeros in one head's rows `[first, last)` of a contiguous o: TILE of them, every `step` rows."""
    for start in range(first, last, step):
        row = start + tl.arange(0, TILE)
        mask = (row < last)[:, None] & (column < HEAD_DIM)[None, :]
        offset = (row[:, None].to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + column[None, :]
        tl.store(o_ptr + offset, tl.zeros(offset.shape, o_ptr.dtype.element_ty), mask=mask)


def head_tile(head_dim: int) -> int:
    """The width of a tile that holds a head: a power of two, and no less than tl.dot takes."""
    return max(16, triton.next_power_of_2(head_dim))
