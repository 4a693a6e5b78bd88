"""The one tolerance. A result may err at most twice as far as plain PyTorch in the same dtype does, plus a rounding.

oracle = the reference in float64, twin = the reference in the tested dtype; every value finite and
`err(actual) <= 2 * (err(twin) + one rounding of the output)`, errors taken as maxima over the tensor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def widen(value: Any) -> Any:
    """The same argument in float64; integers, None and Python numbers pass through."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_accurate(actual: Any, reference: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """`actual` is what the tested op returned for these arguments; `reference` is its namesake in reference.py."""
    oracle = reference(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})
    twin = reference(*args, **kwargs)
    for got, true, native in zip(tensors(actual), tensors(oracle), tensors(twin), strict=True):
        assert_within(got, true, native)


def assert_within(actual: Tensor, oracle: Tensor, twin: Tensor) -> None:
    """The tolerance itself, for results whose oracle and twin are already at hand."""
    fault = excess(actual, oracle, twin)
    assert not fault, fault


def excess(actual: Tensor, oracle: Tensor, twin: Tensor, width: float = 2) -> str:
    """What is wrong with a result, in words: its error and the allowed one; nothing if it is within the tolerance.

    width: how many times as far as PyTorch it may err.
    """
    if actual.shape != twin.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(twin.shape)}"
    if actual.dtype != twin.dtype:
        return f"dtype {actual.dtype}, expected {twin.dtype}"
    if actual.numel() == 0:
        return ""
    if not bool(actual.isfinite().all()):
        return f"{int((~actual.isfinite()).sum())} of {actual.numel()} values are not finite"
    rounding = torch.finfo(actual.dtype).eps / 2 * oracle.abs().max()
    budget = width * ((twin.double() - oracle).abs().max() + rounding)
    error = (actual.double() - oracle).abs().max()
    return "" if error <= budget else f"error {error:.3e} over the budget {budget:.3e}"
