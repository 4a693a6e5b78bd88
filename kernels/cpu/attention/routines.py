"""Functions written in LLVM's instructions, compiled together once, for kernels to call by their addresses.

A kernel that called them as numba's functions would compile them again for each dtype, and in each function on the way.
"""

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.kernel_cache import KernelCache

KINDS = {"q": vi.I64, "d": vi.F32}  # letters of a layout: whole numbers and addresses, float32
Writer = Callable[..., None]

_writers: dict[str, tuple[Writer, str]] = {}


def routine(layout: str) -> Callable[[Writer], str]:
    """Make a routine of `write(builder, *arguments)`: its name, by which `addresses` knows it."""
    return lambda write: add(write.__name__, layout, write)


def add(name: str, layout: str, write: Writer) -> str:
    """Declare a routine; its arguments are those of the layout, a letter each."""
    _writers[name] = write, layout
    return name


@cache
@global_compiler_lock
def addresses() -> dict[str, int]:
    """Where the machine code of each declared routine lies: from the disk, or compiled now and kept there."""
    codegen = cpu_target.target_context.codegen()
    kept = KernelCache(addresses)
    key = kept.key(sorted(_writers), codegen)
    if (code := kept.read(key)) is not None:
        library = codegen.unserialize_library(pickle.loads(code))
    else:
        library = codegen.create_library("octavo.attention")
        library.enable_object_caching()
        library.add_ir_module(_module(library))
        library.finalize()
        kept.write(key, pickle.dumps(library.serialize_using_object_code()))
    _libraries.append(library)
    return {name: library.get_pointer_to_function(name) for name in _writers}


_libraries: list[Any] = []  # whose code is in use


def _module(library: Any) -> Any:
    module = library.create_ir_module("octavo.attention")
    for name, (write, layout) in _writers.items():
        kind = ir.FunctionType(ir.VoidType(), [KINDS[letter] for letter in layout])
        function = ir.Function(module, kind, name)
        builder = ir.IRBuilder(function.append_basic_block())
        write(builder, *function.args)
        builder.ret_void()
    return module


@intrinsic
def call(context: Any, address: Any, arguments: Any) -> Any:
    """Call the routine at an address."""
    kinds = [types.float32 if isinstance(kind, types.Float) else types.int64 for kind in arguments]
    result = types.void(types.int64, types.Tuple(kinds))

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values = [builder.extract_value(given[1], i) for i in range(len(kinds))]
        pointer = ir.FunctionType(ir.VoidType(), [value.type for value in values]).as_pointer()
        builder.call(builder.inttoptr(given[0], pointer), values)
        return context.get_dummy_value()

    return result, generate
