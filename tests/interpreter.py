"""Triton's interpreter, made exact: its dot multiplies bfloat16 bit patterns, and a row's bits there depend on the others.

Both come from np.matmul. This dot widens bfloat16 first and sums over k in one fixed order, as a tensor core does for
each row by itself, so that bitwise tests mean on a CPU what they mean on a GPU.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(operand: Any) -> np.ndarray:
    """Its values in float32; the interpreter keeps bfloat16 as uint16 bit patterns."""
    if operand.dtype.scalar == tl.bfloat16:
        return (operand.data.astype(np.uint32) << 16).view(np.float32)
    return operand.data.astype(np.float32)


def row_exact_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> TensorHandle:
    x, y = widened(a), widened(b)
    total = np.zeros(d.data.shape, np.float32)
    for k in range(x.shape[-1]):
        total += x[..., :, k, None] * y[..., k, None, :]
    return TensorHandle((total + d.data).astype(d.data.dtype), d.dtype.scalar)


def install() -> None:
    """For this process; called once, from conftest.py."""
    InterpreterBuilder.create_dot = row_exact_dot
