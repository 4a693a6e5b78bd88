"""What causal_attention and paged_attention share, so that the same query gets the same bits from both.

    o = sum_j softmax_j(scale * q . k_j) v_j, over the keys that a query may see

A query's keys are cut at absolute multiples of SPLIT from position 0 into pieces, and a piece at multiples of BLOCK_N
into tiles. Tile by tile a piece gathers the largest score so far m (in powers of two), the sum l of
`p = 2^(s * scale * log2 e - m)` and the accumulator `sum p v`, in float32, rescaled by `alpha = 2^(m_old - m_new)` when
m grows; then `fold` joins it to the pieces before it, in order. Decode computes pieces in parallel and prefill one
after another; both fold with the same function, so both round alike. A key that a query may not see scores a true
-inf, so a tile or a piece with none that it may see leaves the row's bits alone (p is 0, alpha is 1), and a row that
sees no key at all keeps m = -inf and ends as zeros. A multiply-add that could be contracted is spelled `fma`, so no two
loops round differently.
A soft cap turns s into `tanh(s * cap_scale)`, and scale is then the cap. A window hides the keys before `lower`; tiles
that no query of the program sees are not read. A sink is folded in last: a score without a value.
The online softmax is from https://arxiv.org/abs/2205.14135
"""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
SPLIT = 256  # keys in a piece: the bits of a longer context depend on it
HEADS_TOGETHER = 4  # heads that advance side by side in prefill


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
def _tanh(x):
    """Within 2 units of the last place, without overflow: Cephes' tanhf."""
    z = x * x
    y = tl.fma(z, -5.70498872745e-3, 2.06390887954e-2)
    y = tl.fma(y, z, -5.37397155531e-2)
    y = tl.fma(y, z, 1.33314422036e-1)
    y = tl.fma(y, z, -3.33332819422e-1)
    decay = tl.exp2(-2.8853900817779268 * tl.abs(x))  # exp(-2 |x|)
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.625, tl.fma(x * z, y, x), tl.where(x >= 0, far, -far))


@triton.jit
def attend(q, k, v, visible, piece, scale_log2, cap_scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Take one tile into a piece's m, l, acc: q `[M, D]`, k and v `[N, D]`, visible `[M, N]`, unread unless MASKED."""
    m_i, l_i, acc = piece
    s = _scores(q, k, PRECISION)  # [M, N]
    if cap_scale is not None:
        s = _tanh(s * cap_scale)
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
def nothing(M: tl.constexpr, D: tl.constexpr):
    """m, l and acc of M rows before their first key."""
    return tl.full([M], -float("inf"), tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, D], tl.float32)


@triton.jit
def fold(past, piece):
    """Join a piece's m `[M]`, l `[M]` and acc `[M, D]` to those of all pieces before it."""
    m_past, l_past, acc_past = past
    m_i, l_i, acc = piece
    m_new = tl.maximum(m_past, m_i)
    shift = tl.where(m_new == -float("inf"), 0.0, m_new)
    alpha, weight = tl.exp2(m_past - shift), tl.exp2(m_i - shift)
    l_new = tl.fma(l_past, alpha, l_i * weight)
    return m_new, l_new, tl.fma(acc_past, alpha[:, None], acc * weight[:, None])


@triton.jit
def end_tile(end, past, piece, SPLIT: tl.constexpr):
    """After the tile that ends at key `end`: where a piece ends, too, fold it and begin the next."""
    if end % SPLIT == 0:
        past = fold(past, piece)
        piece = nothing(piece[2].shape[0], piece[2].shape[1])
    return past, piece


@triton.jit
def load_rows(pointers, row, num_rows, offs_d, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """Rows `[N, D]` of q, k or v; zeros from num_rows on (if MASKED: dead memory may hold NaN) and beyond the head."""
    PADDED: tl.constexpr = offs_d.shape[0] > HEAD_DIM
    if MASKED and PADDED:
        return tl.load(pointers, mask=(row < num_rows)[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=(row < num_rows)[:, None], other=0.0)
    elif PADDED:
        return tl.load(pointers, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


# fmt: off
@triton.jit
def attend_cache(
    q, k_cache_ptr, v_cache_ptr, table_ptr, stride_block, stride_slot,
    position, lower, low, offs_d, first, last, past, piece, scale_log2, cap_scale,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):
    """Take cached keys `[first, last)` into `piece`, and each piece that ends into `past`, unless that is None.

    Without MASKED all queries must see them all.
    With a window a query sees no key before its `lower`, and keys before `low`, the least of them, are not read.
    """
    lane = tl.arange(0, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        key = start + lane
        row = key  # last where nothing may be read
        if MASKED and lower is not None:
            row = tl.where(key < low, last, key)
        if MASKED:
            block = tl.load(table_ptr + key // BLOCK_SIZE, mask=row < last, other=0)  # [BLOCK_N]
        else:
            block = tl.load(table_ptr + key // BLOCK_SIZE)
        slot = block.to(tl.int64) * stride_block + key % BLOCK_SIZE * stride_slot
        k = load_rows(k_cache_ptr + slot[:, None] + offs_d[None, :], row, last, offs_d, HEAD_DIM, MASKED)
        v = load_rows(v_cache_ptr + slot[:, None] + offs_d[None, :], row, last, offs_d, HEAD_DIM, MASKED)
        visible = key[None, :] <= position[:, None]
        if lower is not None:
            visible &= key[None, :] >= lower[:, None]
        piece = attend(q, k, v, visible, piece, scale_log2, cap_scale, MASKED, PRECISION)
        if past is not None:
            past, piece = end_tile(start + BLOCK_N, past, piece, SPLIT)
    return past, piece
# fmt: on


@triton.jit
def first_tiles(first_position, last_full, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of BLOCK_M queries with a window: the earliest key seen, its tile, and the first tile that all of them see."""
    low = tl.maximum(first_position + 1 - window, 0)
    full = tl.cdiv(tl.maximum(first_position + BLOCK_M - window, 0), BLOCK_N) * BLOCK_N
    return low, low // BLOCK_N * BLOCK_N, tl.minimum(full, last_full)


@triton.jit
def fold_sink(m_i, l_i, sink):
    """Fold in a score that has no value: l, and the factor of acc."""
    sink *= 1.4426950408889634
    m_new = tl.maximum(m_i, sink)
    shift = tl.where(m_new == -float("inf"), 0.0, m_new)
    alpha = tl.exp2(m_i - shift)
    return tl.fma(l_i, alpha, tl.exp2(sink - shift)), alpha


@triton.jit
def normalise(l_i, acc):
    """`acc / l`, and zeros for a row that saw no key."""
    return acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]


@triton.jit
def zero_rows(
    o_ptr, first, last, step, head, offs_d, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr
):
    """Zeros in one head's rows `[first, last)` of a contiguous o: TILE of them, every `step` rows."""
    for start in range(first, last, step):
        row = start + tl.arange(0, TILE)
        mask = (row < last)[:, None] & (offs_d < HEAD_DIM)[None, :]
        offset = (row[:, None].to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + offs_d[None, :]
        tl.store(o_ptr + offset, tl.zeros(offset.shape, o_ptr.dtype.element_ty), mask=mask)


def scales(scale: float, softcap: float) -> tuple[float, float | None]:
    """`scale_log2` and `cap_scale` of a launch: the latter None where there is no soft cap."""
    return (softcap * LOG2_E, scale / softcap) if softcap else (scale * LOG2_E, None)


def head_tile(head_dim: int) -> int:
    """The width of a tile that holds a head: a power of two, and no less than tl.dot takes."""
    return max(16, triton.next_power_of_2(head_dim))
