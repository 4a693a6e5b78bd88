"""Loops for a CPU: Python functions that numba compiles for the machine at hand and PyTorch's own threads run.

A loop takes one argument, fields of 8 bytes each: addresses, whole numbers and scales. It reads them by place, as a
Triton kernel takes its pointers, computes in float32, and runs on every thread, which takes its `share` of the work.
What numba compiled is kept on disk, in `__pycache__` or where NUMBA_CACHE_DIR says.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, config, njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

# Halves are held as their bits: uint16 is a bfloat16, int16 a float16.
DTYPES = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
LITTLE = 2**14  # values touched: up to here a second thread costs more than it brings

ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}  # sums in wide registers; infinities and NaN stay what they are
IN_ORDER = {"contract"}

PLACES = "octavo_thread", "octavo_num_threads"  # what compiled code asks for its place by


def _team() -> tuple[Callable[..., None], tuple[Any, Any]]:
    """What starts a function on the threads of PyTorch's operators, and whom a thread asks for its place among them.

    Only GNU's library is spoken to; where PyTorch brought another, a loop runs on one thread.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=getattr(os, "RTLD_NOLOAD", 0))
    except OSError:
        entry, number = ctypes.CFUNCTYPE(None, ctypes.c_char_p), ctypes.CFUNCTYPE(ctypes.c_int)
        alone = number(lambda: 0), number(lambda: 1)
        return lambda address, fields, num_threads, flags: entry(address)(fields), alone
    library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint
    library.GOMP_parallel.restype = None
    return library.GOMP_parallel, (library.omp_get_thread_num, library.omp_get_num_threads)


_start, _askers = _team()
for _name, _asker in zip(PLACES, _askers, strict=True):
    llvmlite.binding.add_symbol(_name, ctypes.cast(_asker, ctypes.c_void_p).value)
_thread, _num_threads = (types.ExternalFunction(name, types.int32()) for name in PLACES)


_tape: ContextVar[list[Callable[[], Any]] | None] = ContextVar("tape", default=None)


@contextmanager
def taped(calls: list[Callable[[], Any]]) -> Iterator[None]:
    """Every loop that runs meanwhile is appended to `calls`, ready to run again on the same memory."""
    token = _tape.set(calls)
    try:
        yield
    finally:
        _tape.reset(token)


class Loop:
    """A loop, compiled once for each dtype of its values."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function
        self._compiled: dict[torch.dtype, Any] = {}
        self._layout: struct.Struct | None = None

    def __call__(self, dtype: torch.dtype, work: int, *fields: Tensor | int | float) -> None:
        """Run on values of that dtype; `work`: how many of them are touched, about."""
        if dtype not in self._compiled:
            self._compile(dtype)
        if self._layout is None:
            self._layout = struct.Struct("".join("d" if isinstance(field, float) else "q" for field in fields))
        packed = self._layout.pack(*[field.data_ptr() if isinstance(field, Tensor) else field for field in fields])
        call = partial(
            _start, self._compiled[dtype].address, packed, 1 if work <= LITTLE else torch.get_num_threads(), 0
        )
        call()
        if (tape := _tape.get()) is not None:
            tape.append(call)

    def _compile(self, dtype: torch.dtype) -> None:
        signature = types.void(types.CPointer(DTYPES[dtype]))
        with _cache_of_these_sources():
            self._compiled[dtype] = cfunc(signature, cache=True, fastmath=ANY_ORDER, error_model="numpy")(self.function)


_cache_lock = Lock()


@contextmanager
def _cache_of_these_sources() -> Iterator[None]:
    """numba's cache in a folder named after our sources: by itself it does not see that a called function changed."""
    with _cache_lock:
        folder = config.CACHE_DIR
        config.CACHE_DIR = str(Path(folder or Path(__file__).with_name("__pycache__")) / _digest())
        try:
            yield
        finally:
            config.CACHE_DIR = folder


@cache
def _digest() -> str:
    """A hash of every source beside this file, whatever its name."""
    return digest_of(Path(__file__).parent)


def digest_of(folder: Path) -> str:
    """A hash of the names and contents of all Python files below a folder."""
    sources = sorted(folder.rglob("*.py"))
    parts = (str(source.relative_to(folder)).encode() + b"\0" + source.read_bytes() for source in sources)
    return sha256(b"\0".join(parts)).hexdigest()[:12]


def _fields(kind: Callable[[Any], Any]) -> Any:
    """What reads `count` fields from the one numbered `first`: pointers, or numbers as they lie there."""

    @intrinsic(prefer_literal=True)
    def read(context: Any, fields: Any, first: Any, count: Any) -> Any:
        each = kind(fields)
        result = types.UniTuple(each, count.literal_value)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            held = context.get_value_type(each)
            is_pointer = isinstance(each, types.CPointer)
            words = builder.bitcast(arguments[0], (ir.IntType(64) if is_pointer else held).as_pointer())
            places = (ir.Constant(ir.IntType(64), first.literal_value + i) for i in range(count.literal_value))
            read = [builder.load(builder.gep(words, [place])) for place in places]
            return context.make_tuple(
                builder, result, [builder.inttoptr(x, held) for x in read] if is_pointer else read
            )

        return result(fields, first, count), generate

    return read


values = _fields(lambda fields: fields)
integers = _fields(lambda _: types.CPointer(types.int32))
floats = _fields(lambda _: types.CPointer(types.float32))
signed_bytes = _fields(lambda _: types.CPointer(types.int8))
numbers = _fields(lambda _: types.int64)
scales = _fields(lambda _: types.float64)


@njit
def share(count):
    """The first of this thread's part of `count` things, and the one behind its last."""
    thread, num_threads = _thread(), _num_threads()
    return count * thread // num_threads, count * (thread + 1) // num_threads


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of values that a loop takes together; ValueError where it takes none of that dtype, or several."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ValueError(
            f"the cpu backend computes in one of float32, bfloat16, float16, not in {sorted(map(str, dtypes))}"
        )
    return tensors[0].dtype


def rows_of_heads(x: Tensor) -> Tensor:
    """x `[num_tokens, heads, head_dim]` with each token's heads in a row, as in a view of a fused projection."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def widen(value):
    """A stored value as float32."""


def narrow(value, like):
    """A float32 as values like that one are stored, rounded to nearest, ties to even."""


@overload(widen)
def _widen(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    if value == types.int16:
        return lambda value: _from_float16(value)
    return lambda value: np.float32(value)


@overload(narrow)
def _narrow(value, like):
    if like == types.uint16:
        return lambda value, like: _to_bfloat16(np.float32(value))
    if like == types.int16:
        return lambda value, like: _to_float16(np.float32(value))
    return lambda value, like: np.float32(value)


@intrinsic
def _from_float16(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits), generate


@intrinsic
def _to_float16(context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(value), generate


@njit(fastmath=IN_ORDER)
def _to_bfloat16(value):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    nan = np.uint32(0x7FC00000)
    return np.uint16((rounded if value == value else nan) >> np.uint32(16))


@njit(fastmath=IN_ORDER)
def exp(x):
    """e^x in float32, within 2 units of the last place; 0 far below, infinity far above, NaN of NaN.

    x = n log(2) + r: a polynomial in r (Cephes' expf) times 2^n, by whole numbers, so that it runs in wide registers.
    """
    low, high = np.float32(-87.0), np.float32(88.0)
    inside = low if x < low else x
    inside = high if inside > high else inside
    shifted = inside * np.float32(1.4426950408889634) + np.float32(12582912.0)  # 1.5 * 2^23: n in the last bits
    n = shifted - np.float32(12582912.0)
    r = inside - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * r + np.float32(c)
    y = y * r * r + r + np.float32(1)
    exponent = np.uint32(np.float32(shifted).view(np.uint32) + np.uint32(127))
    y *= np.uint32(exponent << np.uint32(23)).view(np.float32)
    y = np.float32(0) if x < low else y
    return np.float32(np.inf) if x > high else y
