"""Compile one call for a GPU that need not be there, and read what the machine code needs.

The call is an ordinary call of a public op on meta tensors. Two things are put in its way: a driver that claims to be
the named GPU, so that Triton types, specialises and compiles exactly as it would there, and an end before the launch.
The cubin goes through cuobjdump, which Triton's wheel brings along.
"""

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from octavo.kernels.codegen.cases import Case
from octavo.kernels.triton import launch


@dataclass(frozen=True)
class Machine:
    target: GPUTarget
    shared_limit: int  # bytes a program may have
    shared_total: int  # bytes a multiprocessor has
    tensor_core: str  # the instruction that a 16-bit tl.dot must become


KB = 1024
MACHINES = {
    "sm_80": Machine(GPUTarget("cuda", 80, 32), 99 * KB, 164 * KB, "HMMA"),  # 99: what sm_86, 89 and 120 have
    "sm_90": Machine(GPUTarget("cuda", 90, 32), 227 * KB, 228 * KB, "HGMMA"),
    "sm_100": Machine(GPUTarget("cuda", 100, 32), 227 * KB, 228 * KB, "UTCHMMA"),
    "gfx942": Machine(GPUTarget("hip", "gfx942", 64), 64 * KB, 64 * KB, ""),
}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")  # its address, its text
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # what one NVIDIA multiprocessor holds


@dataclass(frozen=True)
class Code:
    """What one compiled kernel needs; None and empty where the architecture is compiled only."""

    label: str
    dtype: str
    arch: str
    kernel: str
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    shared: int
    seconds: float
    has_dot: bool  # of 16-bit inputs
    k_widths: frozenset[int]  # consecutive k a thread feeds to mma; 2 is the hardware's own order in 16 bits
    registers: int | None = None
    stack: int | None = None
    programs: int | None = None  # resident on one multiprocessor
    instructions: int | None = None
    tensor_core: frozenset[str] = frozenset()
    load_bits: int | None = None  # of the widest global load in a loop, or anywhere if no loop loads


class PretendDriver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int | str:
        return self.target.arch

    def get_current_stream(self, device: object) -> int:
        return 0


@contextmanager
def pretend(arch: str) -> Iterator[list[tuple[Any, float]]]:
    """Inside, every launch compiles for that arch and ends there; yields the growing list of (compiled, seconds)."""
    compiled: list[tuple[Any, float]] = []

    def compile_only(kernel: Any, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            compiled.append((kernel.run(*args, grid=grid, warmup=True, **kwargs), time.perf_counter() - start))

        return run

    with (
        mock.patch.object(driver, "_active", PretendDriver(MACHINES[arch].target)),
        mock.patch.object(KernelInterface, "__getitem__", compile_only),
        mock.patch.object(launch, "arch_of", return_value=arch),
        mock.patch.object(knobs.compilation, "always_compile", True),
    ):
        yield compiled


def compile_case(case: Case, dtype: str, arch: str, known: set[str]) -> Iterator[Code]:
    """Compile every kernel that one call launches; `known` holds the hashes of those already seen, and grows."""
    with pretend(arch) as compiled:
        case.op(*case.args, **case.kwargs)
    for kernel, seconds in compiled:
        if kernel.metadata.hash not in known:
            known.add(kernel.metadata.hash)
            yield inspect(kernel, seconds, case.label, dtype, arch)


def inspect(kernel: Any, seconds: float, label: str, dtype: str, arch: str) -> Code:
    """Read one compiled kernel."""
    metadata, names = kernel.metadata, kernel.src.fn.arg_names
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    has_dot = re.search(r"tt\.dot .*tensor<[0-9x]+x(bf16|f16)", kernel.asm["ttir"]) is not None
    k_widths = frozenset(int(width) for width in re.findall(r"kWidth = (\d+)", kernel.asm["ttgir"])) if has_dot else ()
    known = (label, dtype, arch, metadata.name, constants, metadata.num_warps, metadata.num_stages, metadata.shared)
    if "cubin" not in kernel.asm:
        return Code(*known, seconds, has_dot, frozenset(k_widths))
    sass = disassemble(kernel.asm["cubin"])
    registers, stack = (int(re.search(rf"{name}:(\d+)", sass)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    programs = min(
        PROGRAMS,
        WARPS // metadata.num_warps,
        REGISTERS // (metadata.num_warps * 32 * -(-registers // 8) * 8),
        MACHINES[arch].shared_total // (metadata.shared + KB),
    )
    cores = frozenset(re.findall(r"\b(UTC\wMMA|[HQ]GMMA|HMMA)\b", sass))
    counted = (registers, stack, programs, len(INSTRUCTION.findall(sass)))
    return Code(*known, seconds, has_dot, frozenset(k_widths), *counted, cores, widest_load(sass))


def disassemble(cubin: bytes) -> str:
    """Resource usage and SASS of a cubin, as cuobjdump prints them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def widest_load(sass: str) -> int | None:
    """Bits of the widest global load inside a loop; of all global loads if no loop has one; None if there is none."""
    lines = [(int(at, 16), text) for at, text in INSTRUCTION.findall(sass)]
    branches = [(at, int(to[1], 16)) for at, text in lines if (to := re.search(r"\bBRA.*?(0x[0-9a-f]+)", text))]
    loops = [(to, at) for at, to in branches if to < at]
    loads = [(at, found[0]) for at, text in lines if (found := re.search(r"\b(?:LDG|LDGSTS|UTMALDG)\b\S*", text))]
    looped = [load for at, load in loads if any(start <= at <= end for start, end in loops)]
    return max((load_bits(load) for load in looped or [load for _, load in loads]), default=None)


def load_bits(instruction: str) -> int:
    """Bits one thread moves: LDG.E.128 has 128, LDG.E 32; a tensor-memory copy counts as 128."""
    if instruction.startswith("UTMALDG"):
        return 128
    width = re.search(r"\.(?:[US])?(8|16|64|128|256)\b", instruction)
    return int(width[1]) if width else 32
