"""Triton's interpreter, made exact and faster: installed by conftest.py where there is no GPU.

Its own dot multiplies bfloat16 bit patterns, and goes through np.matmul, where a row's bits change with the number of
rows. Ours widens bfloat16 and sums over k in one fixed order, each row by itself, as a tensor core does: what bitwise
tests show on a CPU is then what the kernel's own order of operations gives.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
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


class NothingToRestore:
    def restore(self) -> None:
        pass


patch_language = interpreter._patch_lang
patched: set[Any] = set()


def patch_once(fn: Any) -> Any:
    """Replace triton.language for a kernel, but not again for each function that it calls: a third of all time."""
    new = {module for module in fn.__globals__.values() if module is tl or module is tl.core} - patched
    if not new:
        return NothingToRestore()
    scope = patch_language(fn)
    patched.update(new)
    restore = scope.restore

    def restore_once() -> None:
        patched.difference_update(new)
        restore()

    scope.restore = restore_once
    return scope


def install() -> None:
    np.seterr(all="ignore")  # on a GPU, too, inf - inf is NaN without a word
    InterpreterBuilder.create_dot = row_exact_dot
    interpreter._patch_lang = patch_once
