"""What LLVM makes of the CPU's tiles for named processors, on any machine.

    python -m octavo.kernels.codegen.cpu_tiles [--cpu znver4 ...] [--rows 1 ...]

A line for each processor, format and number of rows: the instructions of the loop over blocks, how many of them
multiply and by which instruction, and how many only move values between registers and the stack. Exit status 1 where a
tile is not made of the instruction that its processor has for it. What takes a panel and few rows at a time
(tile.write_narrow) has one line, of 1 row.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import llvmlite.binding as llvm
from llvmlite import ir
from rich.console import Console
from rich.table import Table

from octavo.kernels.cpu import vector_ir as vi
from octavo.kernels.cpu.panels.formats import FORMATS, Format
from octavo.kernels.cpu.panels.tile import TILE, TILE_ROWS, is_wide, write_narrow, write_tile

LINUX_X86, LINUX_ARM, MACOS = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx"
AVX2 = "sse2 avx avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512vnni"


@dataclass(frozen=True)
class Machine:
    """A processor, and by which instructions its tiles multiply."""

    target: vi.Target
    dot: str  # products of bytes
    fma: str
    pairs: str = ""  # products of bfloat16, where it has them


def _machine(triple: str, cpu: str, features: str, dot: str, fma: str, pairs: str = "") -> Machine:
    return Machine(vi.Target(triple, cpu, frozenset(features.split())), dot, fma, pairs)


MACHINES = {
    each.target.cpu: each
    for each in (
        _machine(LINUX_X86, "znver4", f"{AVX512} avx512bf16", "vpdpbusd", "vfmadd", "vdpbf16ps"),
        _machine(LINUX_X86, "sapphirerapids", f"{AVX512} avx512bf16 avxvnni", "vpdpbusd", "vfmadd", "vdpbf16ps"),
        _machine(LINUX_X86, "skylake-avx512", f"{AVX2} avx512f avx512bw avx512vl", "vpmaddwd", "vfmadd"),
        _machine(LINUX_X86, "alderlake", f"{AVX2} avxvnni", "vpdpbusd", "vfmadd"),
        _machine(LINUX_X86, "haswell", AVX2, "vpmaddwd", "vfmadd"),
        _machine(LINUX_X86, "x86-64", "sse2", "pmaddwd", "mulps"),
        _machine(LINUX_ARM, "neoverse-v1", "neon dotprod i8mm", "usdot", "fmla"),
        _machine(LINUX_ARM, "cortex-a76", "neon dotprod", "sdot", "fmla"),
        _machine(MACOS, "apple-m1", "neon dotprod", "sdot", "fmla"),
        _machine(LINUX_ARM, "cortex-a72", "neon", "smlal", "fmla"),
    )
}


@dataclass(frozen=True)
class Loop:
    """The loop over blocks of a tile, in machine code."""

    machine: Machine
    format: Format
    rows: int
    counts: Counter[str] = field(hash=False)  # of each instruction
    stack: int  # instructions that save a register to the stack or bring it back

    @property
    def wanted(self) -> str:
        """The instruction of which the tile should be made."""
        if self.format.activations.startswith("int"):
            return self.machine.dot
        return self.machine.pairs if self.format.activations == "bfloat16" else self.machine.fma

    @property
    def products(self) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith(self.wanted))


def tiles(machine: Machine) -> Iterator[tuple[Format, int]]:
    """The tiles that a machine runs: formats, and rows of each."""
    for format in FORMATS.values():
        if format.activations != "bfloat16" or machine.pairs:
            with vi.writing_for(machine.target):
                wide = is_wide(format)
            yield from ((format, rows) for rows in (TILE_ROWS if wide else (1,)))


def llvm_ir(machine: Machine, format: Format, rows: int) -> str:
    """A tile as we write it, a function `tile` of the type `TILE`."""
    module = ir.Module("tile")
    module.triple = machine.target.triple
    kind = ir.FunctionType(ir.VoidType(), [vi.I64] * len(TILE.args))
    function = ir.Function(module, kind, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    with vi.writing_for(machine.target):
        if is_wide(format):
            write_tile(builder, format, rows, function.args)
        else:
            write_narrow(builder, format, function.args)
    builder.ret_void()
    return str(module)


@cache
def _llvm_target(machine: Machine) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target, features = machine.target, ",".join(f"+{name}" for name in sorted(machine.target.features))
    made = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, features=features, opt=3)
    made.set_asm_verbosity(True)  # marks what moves to the stack
    return made


def compiled(machine: Machine, text: str) -> llvm.ModuleRef:
    """The tile optimised as numba does it."""
    module, target = llvm.parse_assembly(text), _llvm_target(machine)
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return module


def loop_of(machine: Machine, format: Format, rows: int) -> Loop:
    """Compile a tile, and look at its longest loop."""
    text = _llvm_target(machine).emit_assembly(compiled(machine, llvm_ir(machine, format, rows)))
    lines = max(_loops(text.splitlines()), key=len)
    counts = Counter(match[1] for line in lines if (match := re.match(r"\t(?:\{\w+\}\s*)?([a-z][.\w]*)", line)))
    stack = sum(bool(re.search(r"-byte (Folded )?(Spill|Reload)", line)) for line in lines)
    return Loop(machine, format, rows, counts, stack)


def _loops(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lines of each innermost loop: from a label to the last jump back to it, with no such lines within."""
    places = {match[1]: number for number, line in enumerate(lines) if (match := re.match(r"([.\w]+):", line))}
    jumps = ((places.get((line.split() or [""])[-1], number), number) for number, line in enumerate(lines))
    ends = {start: end for start, end in jumps if start < end}
    for start, end in ends.items():
        if not any(start < other < end for other in ends):
            yield list(lines[start : end + 1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.kernels.codegen.cpu_tiles", description=__doc__)
    parser.add_argument("--cpu", nargs="+", choices=MACHINES, default=list(MACHINES))
    parser.add_argument("--rows", nargs="+", type=int, choices=TILE_ROWS, default=[1, 4, 12])
    arguments = parser.parse_args(argv)
    table = Table("cpu", "weights", "activations", "rows", "instructions", "products", "stack")
    missing = 0
    for machine in (MACHINES[name] for name in arguments.cpu):
        for format, rows in tiles(machine):
            if rows in arguments.rows:
                loop = loop_of(machine, format, rows)
                missing += not loop.products
                what = f"{loop.products} {loop.wanted}"
                numbers = str(rows), str(loop.counts.total()), what, str(loop.stack)
                table.add_row(machine.target.cpu, format.name, format.activations, *numbers)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
