"""What a model makes numba and LLVM compile, and doing so while its weights are read.

Compilations follow each other, because numba holds a lock; a thread of its own lets LLVM work beside the reading of a
file, which gives the interpreter away.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial

import torch

from octavo.kernels.cpu import activation, embed, graph, kv_cache, norm, rope, sample
from octavo.kernels.cpu.attention import kernel as attention
from octavo.kernels.cpu.attention import routines
from octavo.kernels.cpu.numba_kernel import Kernel
from octavo.kernels.cpu.panels import prepare, product
from octavo.kernels.cpu.panels.formats import format_for
from octavo.kernels.cpu.panels.tile import tile_address

Compilation = tuple[str, Callable[[], object]]  # its name, and what compiles or reads it from disk


def for_every_model(dtype: torch.dtype, weights: str | None) -> Iterator[Compilation]:
    """In about the order of their first use. weights: the format of a weight in panels (formats.FORMATS), if known."""
    if weights is not None:
        format = format_for(weights, dtype)
        yield f"tile {format.name}, {format.activations}", partial(tile_address, format)
        yield _kernel(prepare.KINDS[format.activations], dtype)
    yield _kernel(product._product, dtype)
    yield _kernel(kv_cache._write_kv, dtype)
    yield "attention routines", routines.addresses
    for kernel in (attention.attend, attention.merge, sample._sample, graph._run_all):
        yield _kernel(kernel, torch.float32)


def for_some_models(dtype: torch.dtype, weights: str) -> Iterator[Compilation]:
    """What only some architectures or requests use; weights: the format of a table that is the head as well."""
    for kernel in (embed.kernel_of(weights), norm._rms_norm, norm._layer_norm, rope._rope, activation._gated):
        yield _kernel(kernel, dtype)
    yield _kernel(sample._likeliest, torch.float32)


def _kernel(kernel: Kernel, dtype: torch.dtype) -> Compilation:
    return kernel.function.__name__.lstrip("_"), partial(kernel.compile, dtype)


def start(dtype: torch.dtype, weights: str | None) -> threading.Thread:
    """Compile what every model needs, meanwhile; a kernel that is called before its turn is compiled by its caller."""
    thread = threading.Thread(target=_compile_all, args=(dtype, weights), name="octavo-compile")
    thread.start()
    return thread


def _compile_all(dtype: torch.dtype, weights: str | None) -> None:
    for _, compile in for_every_model(dtype, weights):
        if not threading.main_thread().is_alive():  # the program ends, which would wait for the rest
            return
        compile()
