"""Launches of several CPU kernels as one parallel region: its threads run them in turn, with a barrier after each.

A region of its own costs a kernel 1 to 2 us, a place in a region 0.3. Every thread takes its share of every kernel,
tiny ones too. The barrier is libgomp's: a thread waits awake as long as `GOMP_SPINCOUNT` says and then sleeps. One that
gives its core away with sched_yield instead makes a step beside busy programs more than twice as long.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from octavo.kernels.cpu import numba_kernel as nk

WORD = ir.IntType(64)


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
