"""Launches of several CPU kernels as one parallel region: its threads run them in turn, with a barrier after each.

A region of its own costs a kernel 2 us, a place in a region a tenth of that. Every thread takes its share of every
kernel, tiny ones too. A thread waits awake for a while and then hands its core to whoever wants it: beside busy
programs the thread that it waits for may be the one without a core.
"""

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from octavo.kernels.cpu import numba_kernel as nk

SPINS = 1000  # of a waiting thread before it gives its core away: 20 to 50 us

# What tells a core that it waits: an intrinsic of LLVM and its arguments, int32. Other machines go without.
PAUSES = {"x86_64": ("llvm.x86.sse2.pause", ()), "aarch64": ("llvm.aarch64.isb", (15,))}

WORD = ir.IntType(64)
LINE = 8  # words of a cache line

_yield_core = types.ExternalFunction("sched_yield", types.int32())


class Region:
    """Launches, run in their order by one team, as large as the largest that one of them asked for.

    It holds what they refer to by address: their fields. Tensors are kept alive by whoever recorded the launches. One
    thread at a time may call it, as is true of the buffers that its kernels write.
    """

    def __init__(self, launches: Sequence[nk.Launch]) -> None:
        self._fields = [np.frombuffer(launch.fields, np.uint8) for launch in launches]
        self._table = np.array([[a.address, f.ctypes.data] for a, f in zip(launches, self._fields, strict=True)])
        self._barrier = np.zeros(3 * LINE, np.int64)  # the middle shares its cache line with nothing else
        numbers = self._table.ctypes.data, len(launches), self._barrier[LINE:].ctypes.data
        self._launch = _region.prepare(torch.float32, 0, *numbers)
        self._launch.num_threads = max(launch.num_threads for launch in launches)

    def __call__(self) -> None:
        self._launch()


@nk.cpu_kernel("qqq")
def _region(fields):
    table, count, barrier = nk.int_args(fields, 0, 3)
    for i in range(count):
        _run(table + 16 * i)
        if i + 1 < count:  # the end of the region is a barrier, too
            _wait(barrier)


@njit
def _wait(barrier):
    """Return when all threads of the team have come here. barrier: two words, arrivals and a generation."""
    team = nk.team_size()
    if team == 1:
        return
    generation, spins = _load(barrier + 8), 0
    if _increment(barrier) == team - 1:
        _store(barrier, 0)
        _store(barrier + 8, generation + 1)
        return
    while _load(barrier + 8) == generation:
        spins += 1
        if spins < SPINS:
            _pause()
        else:
            _yield_core()


@intrinsic
def _run(context: Any, launch: Any) -> Any:
    """Call a kernel. launch: the place of two words, the address of its code and that of its fields."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = builder.inttoptr(arguments[0], WORD.as_pointer())
        code, fields = (builder.load(builder.gep(words, [ir.Constant(WORD, i)])) for i in range(2))
        builder.call(builder.inttoptr(code, ir.FunctionType(ir.VoidType(), [WORD]).as_pointer()), [fields])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _load(context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], WORD.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store(context: Any, word: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], builder.inttoptr(arguments[0], WORD.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _increment(context: Any, word: Any) -> Any:
    """Add one to a word, and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], WORD.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(WORD, 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def _pause(context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in PAUSES:
            name, numbers = PAUSES[platform.machine()]
            values = [ir.Constant(ir.IntType(32), number) for number in numbers]
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
            builder.call(get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), generate
