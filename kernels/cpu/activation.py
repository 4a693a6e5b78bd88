"""SiLU and its product on a CPU, in one call."""

import numpy as np
from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk


@nk.cpu_kernel("vv qq")
def _silu_mul(fields):
    gate_up, out = nk.float_ptrs(fields, 0, 2)
    rows, dim = nk.int_args(fields, 2, 2)
    first, last = nk.thread_range(rows)
    for r in range(first, last):
        for i in range(dim):
            gate = nk.to_float32(gate_up[2 * r * dim + i])
            up = nk.to_float32(gate_up[(2 * r + 1) * dim + i])
            out[r * dim + i] = nk.from_float32(gate / (np.float32(1) + nk.exp(-gate)) * up, gate_up[i])


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection: see the reference."""
    gate_up, dtype = gate_up.contiguous(), nk.common_dtype(gate_up)
    rows, dim = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, dim)
    _silu_mul(dtype, gate_up.numel(), gate_up, out, rows, dim)
    return out
