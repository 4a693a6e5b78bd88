"""One call of one op, and how its result is judged."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.ops import REFERENCE, Ops
from octavo.kernels.sampling_math import log_softmax
from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.testing.numerics import excess, tensors, widen
from octavo.kernels.weights import ACTIVATION_BLOCK, round_activations

Arguments = tuple[Any, ...]
WITH_WEIGHT = "embed", "linear", "lm_head_sample"  # ops whose second argument is a weight
FAR = -1000.0  # log-probabilities below are judged by themselves


@dataclass(frozen=True)
class Case:
    """Arguments of one op, made anew for each use: `make(device)`, a weight of a product dense and unpacked."""

    op: str
    name: str  # of what is hard about it
    make: Callable[[torch.device], Arguments]
    in_place: tuple[int, ...] = ()  # arguments that the op changes, which are then the result
    exact: bool = False  # bit for bit, NaN for NaN
    chooses: bool = False  # the first result is made of ids, bit for bit, the second of their log-probabilities
    format: str | None = None  # of the weight

    def __str__(self) -> str:
        return f"{self.op}, {self.name}"

    def check(self, ops: Ops, device: torch.device = DEVICE) -> None:
        """AssertionError, one line that names the op and the case, where the backend's op is not right: how far it
        errs and how far it may, or what it changed or raised."""
        with torch.no_grad():
            fault = self._fault(ops, device)
        if fault:
            raise AssertionError(f"backend {ops.name!r}: {self}: {fault}")

    def _fault(self, ops: Ops, device: torch.device) -> str:
        """What is wrong, nothing if all is right."""
        arguments, untouched = self.make(device), self.make(device)
        try:
            with _memory_full_of_nan():
                got = self._result(ops, arguments)
        except Exception as error:
            return f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        for i, (after, before) in enumerate(zip(arguments, untouched, strict=True)):
            if i not in self.in_place and not _same_bits(whole(after), whole(before)):
                return f"argument {i} was changed"
        twin = self._result(REFERENCE, self._rounded(self.make(device)))
        if len(got) != len(twin):
            return f"{len(got)} results, expected {len(twin)}"
        if self.exact:
            return next(filter(None, map(_difference, got, twin)), "")
        if self.chooses and (fault := _difference(got[0], twin[0])):
            return f"ids: {fault}"
        if self.chooses:
            return self._fault_of_logprobs(got[1], twin, untouched[0]) if len(twin) > 1 else ""
        oracle = self._result(REFERENCE, tuple(map(widen, self.make(device))))
        faults = (excess(*results) for results in zip(got, oracle, twin, strict=True))
        return next((fault for fault in faults if fault), "")

    def _result(self, ops: Ops, arguments: Arguments) -> tuple[Tensor, ...]:
        """What the op returns, or what it leaves in the arguments that it changes and in the memory around them."""
        if self.op in WITH_WEIGHT:
            arguments = (arguments[0], ops.pack(arguments[1], self.format), *arguments[2:])
        returned = getattr(ops, self.op)(*arguments)
        if self.in_place:
            return tuple(whole(arguments[i]) if self.exact else arguments[i] for i in self.in_place)
        return tensors(returned)

    def _rounded(self, arguments: Arguments) -> Arguments:
        """Where a format's products may round x to bytes, the error of that is the format's own."""
        if self.op == "embed" or self.format is None or arguments[1].shape[1] % ACTIVATION_BLOCK:
            return arguments
        return round_activations(arguments[0]).to(arguments[0].dtype), *arguments[1:]

    def _fault_of_logprobs(self, got: Tensor, twin: tuple[Tensor, ...], logits: Tensor) -> str:
        ids, expected = twin
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return f"log-probabilities: {_difference(got, expected)}"
        oracle = log_softmax(logits.double()).gather(1, ids.clamp(min=0).long().reshape(len(logits), -1))
        true, possible = oracle.reshape(expected.shape), expected.isfinite()
        if not _same_bits(got.nan_to_num(7.0, 8.0, 9.0)[~possible], expected.nan_to_num(7.0, 8.0, 9.0)[~possible]):
            return "log-probabilities: others than the reference's are NaN or infinite"
        for far in (False, True):  # apart, so that no enormous one lends its rounding to the others
            group = possible & ((expected < FAR) == far)
            if fault := excess(got[group], true[group], expected[group]):
                return f"log-probabilities: {fault}"
        return ""


def whole(value: Any) -> Any:
    """All the memory that a view is of, so that a write beside it is seen."""
    return value._base if isinstance(value, Tensor) and value._base is not None else value


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b)
    return a.numel() == 0 or torch.equal(*(x.contiguous().view(torch.uint8) for x in (a, b)))


def _difference(got: Tensor, expected: Tensor) -> str:
    """How results that must be the same to the bit differ."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
    if got.numel() == 0 or _same_bits(got, expected):
        return ""
    other = got.ne(expected) & ~(got.isnan() & expected.isnan())
    return f"{int(other.sum()) or 'the signs'} of {got.numel()} values are not the reference's"


@contextmanager
def _memory_full_of_nan() -> Iterator[None]:
    """New memory holds NaN, so that what a kernel leaves unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what PyTorch cannot do deterministically, which nobody asked for
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
