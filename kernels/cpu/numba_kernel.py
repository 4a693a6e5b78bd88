"""CPU kernels: plain Python functions, compiled by numba and run on PyTorch's OpenMP threads.

A kernel declares its arguments with `@cpu_kernel(layout)`. They reach it packed in fields of 8 bytes, which it reads
by place, as a Triton kernel takes its pointers: `float_ptrs(fields, 0, 2)` are the first two tensors. It computes in
float32 and runs on every thread, each of which takes its `thread_range` of the work. The machine code of this folder's
kernels is kept on disk.
"""

import ctypes
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic, overload
from torch import Tensor

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.kernel_cache import KernelCache, is_kept

# Letters of a layout that stand for tensors, and their dtypes; None is the dtype of the call, ANY whatever there is.
ANY = object()
POINTERS = {"v": None, "i": torch.int32, "f": torch.float32, "a": ANY}

# Halves are held as their bits: uint16 is a bfloat16, int16 a float16.
DTYPES = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
SERIAL_LIMIT = 2**14  # up to so many values touched, waking other threads costs more than it saves

FASTMATH_REASSOC = {"reassoc", "contract", "nsz", "arcp"}  # sums run in wide registers; infinities and NaN stay
FASTMATH_CONTRACT = {"contract"}

PLACES = "octavo_thread", "octavo_num_threads", "octavo_barrier"  # names under which compiled code finds the three


def _team() -> tuple[Callable[..., None], tuple[Any, Any, Any]]:
    """Return libgomp's `GOMP_parallel` and what a thread of it may call: its number, how many there are, a barrier.

    Without libgomp, stand-ins that run a kernel on one thread.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=getattr(os, "RTLD_NOLOAD", 0))
    except OSError:
        entry, number = ctypes.CFUNCTYPE(None, ctypes.c_char_p), ctypes.CFUNCTYPE(ctypes.c_int)
        alone = number(lambda: 0), number(lambda: 1), ctypes.CFUNCTYPE(None)(lambda: None)
        return lambda address, fields, num_threads, flags: entry(address)(fields), alone
    library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint
    library.GOMP_parallel.restype = None
    return library.GOMP_parallel, (library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier)


_start, _asked = _team()
for _name, _function in zip(PLACES, _asked, strict=True):
    llvmlite.binding.add_symbol(_name, ctypes.cast(_function, ctypes.c_void_p).value)
_thread, team_size = (types.ExternalFunction(name, types.int32()) for name in PLACES[:2])
barrier = types.ExternalFunction(PLACES[2], types.void())


@dataclass(slots=True)
class Launch:
    """A kernel and its arguments, ready to run any number of times on the memory that it keeps alive."""

    address: int  # of the machine code
    fields: bytes  # the arguments, packed
    num_threads: int
    arguments: tuple[Tensor | int | float, ...]

    def __call__(self) -> None:
        _start(self.address, self.fields, self.num_threads, 0)


_recorded: ContextVar[list[Callable[[], Any]] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording(calls: list[Callable[[], Any]]) -> Iterator[None]:
    """Append every kernel that runs meanwhile to `calls`, ready to run again on the same memory."""
    token = _recorded.set(calls)
    try:
        yield
    finally:
        _recorded.reset(token)


def cpu_kernel(layout: str) -> Callable[[Callable[[Any], None]], "Kernel"]:
    """Make a kernel of a function, its arguments declared in order, a letter each.

    Tensors come first: v of the call's dtype, i int32, f float32, a of any, which reaches the kernel as an address
    among the whole numbers. Numbers follow: q whole, d float.
    """
    return lambda function: Kernel(function, layout)


class Kernel:
    """A function of packed arguments, compiled once for each dtype of its values. See `cpu_kernel`."""

    def __init__(self, function: Callable[[Any], None], layout: str) -> None:
        kinds = layout.replace(" ", "")
        self.function, self.layout = function, layout
        self._pointers = tuple(POINTERS[kind] for kind in kinds if kind in POINTERS)
        self._struct = struct.Struct(re.sub(f"[{''.join(POINTERS)}]", "q", kinds))
        self._compiled: dict[torch.dtype, Any] = {}

    def __call__(self, dtype: torch.dtype, work: int, *arguments: Tensor | int | float) -> None:
        """Run on values of that dtype; `work`: how many of them are touched, about.

        TypeError where the arguments are not those of the layout, in number or in kind.
        """
        launch = self.prepare(dtype, work, *arguments)
        launch()
        if (calls := _recorded.get()) is not None:
            calls.append(launch)

    def prepare(self, dtype: torch.dtype, work: int, *arguments: Tensor | int | float) -> Launch:
        """Return what `__call__` runs."""
        if dtype not in self._compiled:
            self._compile(dtype)
        num_threads = 1 if work <= SERIAL_LIMIT else torch.get_num_threads()
        return Launch(self._compiled[dtype].address, self._pack(dtype, arguments), num_threads, arguments)

    def _pack(self, dtype: torch.dtype, arguments: tuple[Any, ...]) -> bytes:
        tensors, numbers = arguments[: len(self._pointers)], arguments[len(self._pointers) :]
        try:
            kinds = zip(tensors, self._pointers, strict=True)
            if all(wanted is ANY or tensor.dtype is (wanted or dtype) for tensor, wanted in kinds):
                return self._struct.pack(*[tensor.data_ptr() for tensor in tensors], *numbers)
        except (struct.error, AttributeError, TypeError, ValueError):
            pass
        given = ", ".join(str(a.dtype) if isinstance(a, Tensor) else type(a).__name__ for a in arguments)
        raise TypeError(f"{self.function.__name__} takes ({self.layout}) with values of {dtype}, not ({given})")

    def _compile(self, dtype: torch.dtype) -> None:
        self._compiled[dtype] = compile_kept(self.function, types.void(types.CPointer(DTYPES[dtype])), FASTMATH_REASSOC)


def compile_kept(function: Callable[..., Any], signature: Any, fastmath: Any = False) -> Any:
    """Compile a function, or read its machine code from disk: numba's `CFunc`, whose `address` C code can call."""
    options = {"fastmath": fastmath, "error_model": "numpy"}
    compiled: Any = CFunc(function, (signature.args, signature.return_type), {}, options)
    if is_kept(function):
        compiled._cache = KernelCache(function)
    compiled.compile()
    return compiled


def _fields(kind: Callable[[Any], Any]) -> Any:
    """Make a reader of `count` packed arguments from number `first` on: pointers, or numbers."""

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


float_ptrs = _fields(lambda fields: fields)
int32_ptrs = _fields(lambda _: types.CPointer(types.int32))
float32_ptrs = _fields(lambda _: types.CPointer(types.float32))


def _pointer(kind: Callable[[Any], Any]) -> Any:
    """Make a reader of an address as a pointer, its type found from the other arguments."""

    @intrinsic
    def point(context: Any, address: Any, like: Any) -> Any:
        result = kind(like)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(result))

        return result(types.int64, like), generate

    return point


pointer_like = _pointer(lambda like: like)  # pointer_like(address, pointer): to the same type of values
_float32_pointer = _pointer(lambda _: types.CPointer(types.float32))
_int64_pointer = _pointer(lambda _: types.CPointer(types.int64))
_byte_pointer = _pointer(lambda _: types.CPointer(types.uint8))


@njit
def float32_pointer(address):
    """An address as a pointer to float32."""
    return _float32_pointer(address, None)


@njit
def int64_pointer(address):
    """An address as a pointer to int64."""
    return _int64_pointer(address, None)


@njit
def byte_pointer(address):
    """An address as a pointer to bytes."""
    return _byte_pointer(address, None)


int_args = _fields(lambda _: types.int64)
float_args = _fields(lambda _: types.float64)


@njit
def thread_range(count):
    """Return the first of this thread's part of `count` items, and the one behind its last."""
    thread, num_threads = _thread(), team_size()
    return count * thread // num_threads, count * (thread + 1) // num_threads


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the one dtype of these tensors; ValueError where they have several, or no kernel takes it."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ValueError(
            f"the cpu backend computes in one of float32, bfloat16, float16, not in {sorted(map(str, dtypes))}"
        )
    return tensors[0].dtype


def rows_of_heads(x: Tensor) -> Tensor:
    """x `[num_tokens, heads, head_dim]` with each token's heads in a row, as in a view of a fused projection."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def to_float32(value):
    """Widen a stored value to float32."""


def from_float32(value, like):
    """Round a float32 to the type in which `like` is stored, to nearest, ties to even."""


@overload(to_float32)
def _to_float32(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    if value == types.int16:
        return lambda value: _from_float16(value)
    return lambda value: np.float32(value)


@overload(from_float32)
def _from_float32(value, like):
    if like == types.uint16:
        return lambda value, like: _to_bfloat16(np.float32(value))
    if like == types.int16:
        return lambda value, like: _to_float16(np.float32(value))
    return lambda value, like: np.float32(value)


@intrinsic
def _from_float16(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return vi.widened(builder, builder.bitcast(arguments[0], ir.HalfType()))

    return types.float32(bits), generate


@intrinsic
def _to_float16(context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(vi.narrowed(builder, arguments[0]), ir.IntType(16))

    return types.int16(value), generate


@njit(fastmath=FASTMATH_CONTRACT)
def _to_bfloat16(value):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    nan = np.uint32(0x7FC00000)
    return np.uint16((rounded if value == value else nan) >> np.uint32(16))


@njit(fastmath=FASTMATH_CONTRACT)
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


@njit(fastmath=FASTMATH_CONTRACT)
def tanh(x):
    """The hyperbolic tangent in float32, within 2 units of the last place (Cephes' tanhf)."""
    z, size = x * x, abs(x)
    y = np.float32(-5.70498872745e-3)
    for c in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        y = y * z + np.float32(c)
    far = np.float32(1) - np.float32(2) / (exp(np.float32(2) * size) + np.float32(1))
    return x + x * z * y if size < np.float32(0.625) else (far if x > 0 else -far)
