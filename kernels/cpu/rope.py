"""Rotary embedding on a CPU: queries and keys in one call."""

from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk


@nk.cpu_kernel("vvv i ff qqqqqqqq")
def _rope(fields):
    q, k, out = nk.float_ptrs(fields, 0, 3)
    (positions,) = nk.int32_ptrs(fields, 3, 1)
    cos, sin = nk.float32_ptrs(fields, 4, 2)
    rows, q_heads, k_heads, dim, half, q_stride, k_stride, step = nk.int_args(fields, 6, 8)
    first, last = nk.thread_range(rows)
    for r in range(first, last):
        turn, target = positions[r] * half, r * (q_heads + k_heads) * dim
        for h in range(q_heads):
            _turn(q, r * q_stride + h * dim, out, target + h * dim, dim, cos, sin, turn, half, step)
        target += q_heads * dim
        for h in range(k_heads):
            _turn(k, r * k_stride + h * dim, out, target + h * dim, dim, cos, sin, turn, half, step)


@njit(fastmath=nk.FASTMATH_CONTRACT)
def _turn(x, source, out, target, dim, cos, sin, turn, half, step):
    """One head. Its pairs are neighbours where `step` is 2, and `half` apart where it is 1; the rest is copied."""
    gap = half if step == 1 else 1
    for i in range(half):
        a, b = nk.to_float32(x[source + i * step]), nk.to_float32(x[source + i * step + gap])
        c, s = cos[turn + i], sin[turn + i]
        out[target + i * step] = nk.from_float32(a * c - b * s, x[source])
        out[target + i * step + gap] = nk.from_float32(b * c + a * s, x[source])
    for i in range(2 * half, dim):
        out[target + i] = x[source + i]


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn the pairs of each head by the angles of its position: see the reference."""
    q, k, dtype = nk.rows_of_heads(q), nk.rows_of_heads(k), nk.common_dtype(q, k)
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    out = q.new_empty(num_tokens, num_heads + num_kv_heads, head_dim)
    shape = num_tokens, num_heads, num_kv_heads, head_dim, cos.shape[1]
    sizes = *shape, q.stride(0), k.stride(0), 2 if interleaved else 1
    _rope(dtype, out.numel(), q, k, out, positions.int(), cos, sin, *sizes)
    q, k = out.split_with_sizes((num_heads, num_kv_heads), 1)
    return q, k
