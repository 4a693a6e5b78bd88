"""Judges an op's result: a gate before timing, no proof of the kernel.

Right is at most four times the error of plain PyTorch, plus a rounding. This is twice the tolerance of the tests, since
the sums of a model are longer than those of the tests.

The oracle is the reference in float64, the twin the reference in the dtype at hand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.bench.measuring.op_cases import Arguments, Case

WIDTH = 4  # times the twin's error


def verdict(case: Case, call: Callable[..., Any], reference: Callable[..., Any], arguments: Arguments) -> str:
    """same, rounding or wrong: `call` against the reference, on arguments that stay as they are."""
    got, twin = (_result(case, function, arguments) for function in (call, reference))
    if all(torch.equal(a, b) for a, b in zip(got, twin, strict=True)):
        return "same"
    if case.exact_first:
        return "rounding" if torch.equal(got[0], twin[0]) else "wrong"
    oracle = _result(case, reference, tuple(map(_widen, arguments)))
    return "rounding" if all(map(_within, got, oracle, twin)) else "wrong"


def _result(case: Case, function: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, ...]:
    """What the op returns, or what it leaves in the arguments that it changes."""
    own = [a.clone() if i in case.mutates else a for i, a in enumerate(arguments)]
    returned = function(*own)
    if case.mutates:
        return tuple(own[i] for i in case.mutates)
    return returned if isinstance(returned, tuple) else (returned,)


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _within(got: Tensor, oracle: Tensor, twin: Tensor) -> bool:
    if got.shape != twin.shape or got.dtype != twin.dtype or not bool(got.isfinite().all()):
        return False
    rounding = torch.finfo(got.dtype).eps / 2 * oracle.abs().max()
    budget = WIDTH * ((twin.double() - oracle).abs().max() + rounding)
    return bool((got.double() - oracle).abs().max() <= budget)
