"""What is between the products of a feed-forward layer on a CPU, in one call."""

import numpy as np
from numba import njit
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk


@njit(fastmath=nk.FASTMATH_CONTRACT)
def silu(x):
    return x / (np.float32(1) + nk.exp(-x))


@njit(fastmath=nk.FASTMATH_CONTRACT)
def gelu(x):
    """The tanh form, with tanh(u) = 1 - 2 / (e^2u + 1)."""
    u = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return x / (np.float32(1) + nk.exp(np.float32(-2) * u))


@nk.cpu_kernel("vv qqq")
def _gated(fields):
    gate_up, out = nk.float_ptrs(fields, 0, 2)
    rows, dim, is_gelu = nk.int_args(fields, 2, 3)
    first, last = nk.thread_range(rows)
    for r in range(first, last):
        for i in range(dim):
            gate = nk.to_float32(gate_up[2 * r * dim + i])
            up = nk.to_float32(gate_up[(2 * r + 1) * dim + i])
            out[r * dim + i] = nk.from_float32((gelu(gate) if is_gelu else silu(gate)) * up, gate_up[i])


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection: see the reference."""
    return _gate(gate_up, is_gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up` of a fused projection: see the reference."""
    return _gate(gate_up, is_gelu=True)


def _gate(gate_up: Tensor, is_gelu: bool) -> Tensor:
    gate_up, dtype = gate_up.contiguous(), nk.common_dtype(gate_up)
    rows, dim = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, dim)
    _gated(dtype, gate_up.numel(), gate_up, out, rows, dim, is_gelu)
    return out
