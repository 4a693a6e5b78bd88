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
from octavo.kernels.testing.numerics import excess, widen

WIDTH = 4  # times the twin's error


def verdict(case: Case, call: Callable[..., Any], reference: Callable[..., Any], arguments: Arguments) -> str:
    """same, rounding or wrong: `call` against the reference, on arguments that stay as they are."""
    return judge(case, call, reference, arguments)[0]


def judge(case: Case, call: Callable[..., Any], reference: Callable[..., Any], arguments: Arguments) -> tuple[str, str]:
    """The verdict, and of what is wrong how far it errs and how far it may."""
    got, twin = (_result(case, function, arguments) for function in (call, reference))
    if len(got) != len(twin):
        return "wrong", f"{len(got)} results, expected {len(twin)}"
    if all(torch.equal(a, b) for a, b in zip(got, twin, strict=True)):
        return "same", ""
    if case.exact_first:
        if torch.equal(got[0], twin[0]):
            return "rounding", ""
        return "wrong", f"{_others(got[0], twin[0])} of {twin[0].numel()} ids are not the reference's"
    oracle = _result(case, reference, tuple(map(widen, arguments)))
    faults = [excess(*results, width=WIDTH) for results in zip(got, oracle, twin, strict=True)]
    return ("wrong", next(filter(None, faults))) if any(faults) else ("rounding", "")


def _others(got: Tensor, twin: Tensor) -> int:
    return int((got != twin).sum()) if got.shape == twin.shape else twin.numel()


def _result(case: Case, function: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, ...]:
    """What the op returns, or what it leaves in the arguments that it changes."""
    own = [a.clone() if i in case.mutates else a for i, a in enumerate(arguments)]
    returned = function(*own)
    if case.mutates:
        return tuple(own[i] for i in case.mutates)
    return returned if isinstance(returned, tuple) else (returned,)
