"""SiLU and its product on a CPU, in one call."""

import numpy as np
from torch import Tensor

from octavo.kernels.cpu.numba_kernel import (
    common_dtype,
    cpu_kernel,
    exp,
    float_ptrs,
    from_float32,
    int_args,
    thread_range,
    to_float32,
)


@cpu_kernel("vv qq")
def _silu_mul(fields):
    gate_up, out = float_ptrs(fields, 0, 2)
    rows, dim = int_args(fields, 2, 2)
    first, last = thread_range(rows)
    for r in range(first, last):
        for i in range(dim):
            gate = to_float32(gate_up[2 * r * dim + i])
            up = to_float32(gate_up[(2 * r + 1) * dim + i])
            out[r * dim + i] = from_float32(gate / (np.float32(1) + exp(-gate)) * up, gate_up[i])


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection: see the reference."""
    gate_up, dtype = gate_up.contiguous(), common_dtype(gate_up)
    rows, dim = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, dim)
    _silu_mul(dtype, gate_up.numel(), gate_up, out, rows, dim)
    return out
