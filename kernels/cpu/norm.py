"""The small ops of a layer on a CPU, one call each: norms, rotary embedding, SiLU, and what writes the cache.

A step at batch 1 is as much calls as arithmetic, and PyTorch takes several for each of these.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels.cpu.numba_kernel import (
    IN_ORDER,
    Loop,
    common_dtype,
    exp,
    floats,
    integers,
    narrow,
    numbers,
    rows_of_heads,
    scales,
    share,
    values,
    widen,
)


@njit(fastmath=IN_ORDER)
def _add(x, residual, total, start, dim):
    for i in range(start, start + dim):
        total[i] = narrow(widen(x[i]) + widen(residual[i]), x[i])


@Loop
def _layer_norm(fields):
    x, residual, total, weight, bias, out = values(fields, 0, 6)
    rows, dim, adds = numbers(fields, 6, 3)
    (eps,) = scales(fields, 9, 1)
    first, last = share(rows)
    for start in range(first * dim, last * dim, dim):
        if adds:
            _add(x, residual, total, start, dim)
        mean, squares = np.float64(0), np.float32(0)  # a mean of float32 would be off by what small deviations are
        for i in range(start, start + dim):
            mean += widen(total[i])
        mean /= dim
        for i in range(start, start + dim):
            deviation = np.float32(widen(total[i]) - mean)
            squares += deviation * deviation
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            normal = np.float32(widen(total[start + i]) - mean) * factor
            out[start + i] = narrow(normal * widen(weight[i]) + widen(bias[i]), x[i])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`: see the reference."""
    x, dtype = x.contiguous(), common_dtype(x, weight, bias)
    out = torch.empty_like(x)
    _layer_norm(dtype, x.numel(), x, x, x, weight, bias, out, *x.shape, 0, float(eps))
    return out


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    x, residual, dtype = x.contiguous(), residual.contiguous(), common_dtype(x, residual, weight, bias)
    out, total = torch.empty_like(x), torch.empty_like(x)
    _layer_norm(dtype, x.numel(), x, residual, total, weight, bias, out, *x.shape, 1, float(eps))
    return out, total


@Loop
def _rms_norm(fields):
    x, residual, total, weight, out = values(fields, 0, 5)
    rows, dim, adds = numbers(fields, 5, 3)
    (eps,) = scales(fields, 8, 1)
    first, last = share(rows)
    for start in range(first * dim, last * dim, dim):
        if adds:
            _add(x, residual, total, start, dim)
        squares = np.float32(0)
        for i in range(start, start + dim):
            squares += widen(total[i]) * widen(total[i])
        factor = np.float32(1) / np.sqrt(squares / np.float32(dim) + np.float32(eps))
        for i in range(dim):
            out[start + i] = narrow(widen(total[start + i]) * factor * widen(weight[i]), x[i])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`: see the reference."""
    x, dtype = x.contiguous(), common_dtype(x, weight)
    out = torch.empty_like(x)
    _rms_norm(dtype, x.numel(), x, x, x, weight, out, *x.shape, 0, float(eps))
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    x, residual, dtype = x.contiguous(), residual.contiguous(), common_dtype(x, residual, weight)
    out, total = torch.empty_like(x), torch.empty_like(x)
    _rms_norm(dtype, x.numel(), x, residual, total, weight, out, *x.shape, 1, float(eps))
    return out, total


@Loop
def _silu_mul(fields):
    gate_up, out = values(fields, 0, 2)
    rows, dim = numbers(fields, 2, 2)
    first, last = share(rows)
    for r in range(first, last):
        for i in range(dim):
            gate = widen(gate_up[2 * r * dim + i])
            up = widen(gate_up[(2 * r + 1) * dim + i])
            out[r * dim + i] = narrow(gate / (np.float32(1) + exp(-gate)) * up, gate_up[i])


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection: see the reference."""
    gate_up, dtype = gate_up.contiguous(), common_dtype(gate_up)
    rows, dim = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, dim)
    _silu_mul(dtype, gate_up.numel(), gate_up, out, rows, dim)
    return out


@Loop
def _rope(fields):
    q, k, out = values(fields, 0, 3)
    (positions,) = integers(fields, 3, 1)
    cos, sin = floats(fields, 4, 2)
    rows, q_heads, k_heads, half, q_stride, k_stride, step = numbers(fields, 6, 7)
    first, last = share(rows)
    for r in range(first, last):
        turn, target = positions[r] * half, r * (q_heads + k_heads) * 2 * half
        for h in range(q_heads):
            _turn(q, r * q_stride + h * 2 * half, out, target + h * 2 * half, cos, sin, turn, half, step)
        target += q_heads * 2 * half
        for h in range(k_heads):
            _turn(k, r * k_stride + h * 2 * half, out, target + h * 2 * half, cos, sin, turn, half, step)


@njit(fastmath=IN_ORDER)
def _turn(x, source, out, target, cos, sin, turn, half, step):
    """One head. Its pairs are neighbours where `step` is 2, and half a head apart where it is 1."""
    gap = half if step == 1 else 1
    for i in range(half):
        a, b = widen(x[source + i * step]), widen(x[source + i * step + gap])
        c, s = cos[turn + i], sin[turn + i]
        out[target + i * step] = narrow(a * c - b * s, x[source])
        out[target + i * step + gap] = narrow(b * c + a * s, x[source])


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn the pairs of each head by the angles of its position: see the reference."""
    q, k, dtype = rows_of_heads(q), rows_of_heads(k), common_dtype(q, k)
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    out = q.new_empty(num_tokens, num_heads + num_kv_heads, head_dim)
    sizes = num_tokens, num_heads, num_kv_heads, head_dim // 2, q.stride(0), k.stride(0), 2 if interleaved else 1
    _rope(dtype, out.numel(), q, k, out, positions.int(), cos, sin, *sizes)
    q, k = out.split_with_sizes((num_heads, num_kv_heads), 1)
    return q, k


@Loop
def _write_kv(fields):
    k, v, k_cache, v_cache = values(fields, 0, 4)
    (slots,) = integers(fields, 4, 1)
    rows, width, k_stride, v_stride = numbers(fields, 5, 4)
    first, last = share(rows)
    for r in range(first, last):
        if slots[r] >= 0:
            place = slots[r] * width
            for i in range(width):
                k_cache[place + i] = k[r * k_stride + i]
                v_cache[place + i] = v[r * v_stride + i]


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing: see the reference."""
    k, v, dtype = rows_of_heads(k), rows_of_heads(v), common_dtype(k, v, k_cache, v_cache)
    width = k.shape[1] * k.shape[2]
    _write_kv(dtype, k.numel(), k, v, k_cache, v_cache, slot_mapping.int(), len(k), width, k.stride(0), v.stride(0))
