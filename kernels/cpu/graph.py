"""A CPU graph captures a function's operators once, and replays them on the same buffers without running its Python.

As in a CUDA graph, every tensor of the capture is kept, so that addresses hold. A CPU kernel is replayed with the
arguments as they were packed. An operator of PyTorch that computes something is called again, and its result is copied
to where the captured result lies. A function that looks at the values of a tensor cannot be captured.

Kernels that follow each other run as one parallel region, with a barrier after each. A region of its own costs a kernel
1 to 2 us, a place in a region 0.3. Every thread takes its share of every kernel, tiny ones too. The barrier is
libgomp's: a thread waits awake as long as `GOMP_SPINCOUNT` says and then sleeps. One that gives its core away with
sched_yield instead makes a step beside busy programs more than twice as long.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor, strided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo.kernels.cpu import numba_kernel as nk

ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}

WORD = ir.IntType(64)

Call = Callable[[], Any]


def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run it, and return what does the same again and gives the same tensor, with new values in it.

    RuntimeError if it turned a tensor into a Python number on its way.
    """
    capturing = _Capture()
    with nk.recording(capturing.calls), capturing:
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
    for are_launches, run in groupby(calls, lambda call: isinstance(call, nk.Launch)):
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


class Region:
    """Launches that run in their order by one team, as large as the largest that one of them asked for."""

    def __init__(self, launches: Sequence[nk.Launch]) -> None:
        self._launches = launches  # whose fields the table has by address
        fields = [np.frombuffer(launch.fields, np.uint8).ctypes.data for launch in launches]
        words = [(launch.address, each) for launch, each in zip(launches, fields, strict=True)]
        self._table = np.array(words, np.int64)
        self._launch = _run_all.prepare(torch.float32, 0, self._table.ctypes.data, len(words))
        self._launch.num_threads = max(launch.num_threads for launch in launches)

    def __call__(self) -> None:
        self._launch()


@nk.cpu_kernel("qq")
def _run_all(fields):
    table, count = nk.int_args(fields, 0, 2)
    for i in range(count):
        _run(table + 16 * i)
        if i + 1 < count and nk.team_size() > 1:  # the end of the region is a barrier, too
            nk.barrier()


@intrinsic
def _run(context: Any, row: Any) -> Any:
    """Call a kernel. row: where the address of its code stands and behind it that of its fields, int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = builder.inttoptr(arguments[0], WORD.as_pointer())
        code, fields = (builder.load(builder.gep(words, [ir.Constant(WORD, i)])) for i in range(2))
        kernel = builder.inttoptr(code, ir.FunctionType(ir.VoidType(), [WORD]).as_pointer())
        builder.call(kernel, [fields])
        return context.get_dummy_value()

    return types.void(types.int64), generate
