"""A CPU graph captures a function's operators once, and replays them on the same buffers without running its Python.

As in a CUDA graph, every tensor of the capture is kept, so that addresses hold. A CPU kernel is replayed with the
arguments as they were packed. An operator of PyTorch that computes something is called again, and its result is copied
to where the captured result lies. A function that looks at the values of a tensor cannot be captured.
"""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor, strided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.kernels.cpu.numba_kernel import Launch, recording
from octavo.kernels.cpu.region import Region

ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}

Call = Callable[[], Any]


def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run it, and return what does the same again and gives the same tensor, with new values in it.

    RuntimeError if it turned a tensor into a Python number on its way.
    """
    capturing = _Capture()
    with recording(capturing.calls), capturing:
        result = function()
    capturing.calls = _joined(capturing.calls)

    def replay() -> Tensor:
        for call in capturing.calls:  # which keeps alive what was captured
            call()
        return result

    return replay


def _joined(calls: list[Call]) -> list[Call]:
    """The calls, with one region for kernels that follow each other."""
    joined: list[Call] = []
    for are_launches, run in groupby(calls, lambda call: isinstance(call, Launch)):
        group: list[Any] = list(run)
        joined += [Region(group)] if are_launches else group
    return joined


class _Capture(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.kept: list[Any] = []  # whose memory the calls refer to

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say that it skips, PyTorch would import all of it, for a second

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        self.kept.append((result, args, kwargs))
        results = tree_leaves(result)
        if any(not isinstance(x, Tensor) for x in results):
            raise RuntimeError(f"{op} reads the values of a tensor, which cannot be captured")
        if op._schema.is_mutable:
            self.calls.append(partial(op, *args, **kwargs))
        elif op._schema.name not in ALLOCATIONS and not _is_view(results, args):
            self.calls.append(partial(_again, results, partial(op, *args, **kwargs)))
        return result


def _again(results: list[Tensor], call: Call) -> None:
    """The results as the call gives them now, in their old memory."""
    for old, new in zip(results, tree_leaves(call()), strict=True):
        old.copy_(new)


def _is_view(results: list[Tensor], args: tuple) -> bool:
    """Whether the results are memory of the arguments."""
    given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor) and x.layout is strided}
    return all(x.untyped_storage().data_ptr() in given for x in results)
