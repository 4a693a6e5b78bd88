"""Compile every config of the launch table for named GPUs, with no GPU, and print what the machine code needs.

    python -m octavo.kernels.codegen [--arch sm_90 ...] [--op linear ...] [--dtype bf16 ...] [--quick] [--markdown]

What is compiled stands in cases.py, how in sass.py. Exit status 1 if a kernel breaks a limit that no
entry of `waivers.WAIVERS` covers, or if an entry covers nothing; 2 if asked for something unknown. gfx942 is compiled
only. TRITON_INTERPRET must not be set: it leaves nothing to compile.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context

from rich.console import Console
from rich.table import Table
from triton import knobs

from octavo.kernels.codegen import waivers
from octavo.kernels.codegen.cases import CASES, DTYPES
from octavo.kernels.codegen.sass import MACHINES, Code, compile_case


def broken_limits(code: Code) -> Iterator[tuple[str, str]]:
    """The limits a kernel breaks: (name of the check, what is wrong)."""
    machine = MACHINES[code.arch]
    if code.shared > machine.shared_limit:
        yield "shared", f"{code.shared} bytes of shared memory, limit {machine.shared_limit}"
    if code.registers is None:
        return
    if code.stack:
        yield "spill", f"{code.stack} bytes of stack"
    if code.has_dot and code.tensor_core != {machine.tensor_core}:
        found = ", ".join(sorted(code.tensor_core)) or "no tensor-core instruction"
        yield "tensor_core", f"tl.dot became {found}, not {machine.tensor_core}"
    if code.k_widths - {2}:
        yield "k_order", f"mma operands hold {max(code.k_widths)} consecutive k a thread: another order of k"
    if code.load_bits is not None and code.load_bits < 128:
        yield "wide_load", f"widest global load {code.load_bits} bits"


def waiver_for(code: Code, check: str) -> waivers.Waiver | None:
    """The entry of `waivers.WAIVERS` that lets this kernel break this limit."""
    facts = {**code.constants, "dtype": code.dtype}
    for waiver in waivers.WAIVERS:
        named = (waiver.kernel, waiver.check) == (code.kernel, check) and code.arch in waiver.archs
        if named and all(facts.get(name) == value for name, value in waiver.where.items()):
            return waiver
    return None


Part = tuple[str, str, str, bool]  # op, dtype, arch, quick


def compile_part(part: Part) -> tuple[list[Code], list[str]]:
    """Every kernel that the cases of one op launch in one dtype on one arch, each once; and what failed to compile."""
    op, dtype, arch, quick = part
    known: set[str] = set()
    codes: list[Code] = []
    failures: list[str] = []
    for case in CASES[op](DTYPES[dtype]):
        if quick and not case.quick:
            continue
        try:
            codes += compile_case(case, dtype, arch, known)
        except Exception as error:  # one that fails must not hide the others
            failures.append(f"{arch} {case.label}, {dtype}: {type(error).__name__}: {error}")
    return codes, failures


def compile_parts(parts: list[Part], jobs: int) -> Iterator[tuple[list[Code], list[str]]]:
    """In this process, or in several; in order."""
    if jobs == 1:
        yield from map(compile_part, parts)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(compile_part, parts)


COLUMNS = [
    *("kernel", "call", "dtype", "warps", "stages", "registers", "stack", "shared", "programs per SM"),
    *("instructions", "tensor core", "widest load", "seconds", "verdict"),
]


def cells(code: Code, verdict: str) -> list[str]:
    """One line of the table."""
    numbers = (
        code.num_warps,
        code.num_stages,
        code.registers,
        code.stack,
        code.shared,
        code.programs,
        code.instructions,
    )
    return [
        code.kernel.removeprefix("_").removesuffix("_kernel"),
        code.label,
        code.dtype,
        *("-" if number is None else str(number) for number in numbers),
        ", ".join(sorted(code.tensor_core)) or "-",
        f"{code.load_bits // 8} B" if code.load_bits else "-",
        f"{code.seconds:.1f}",
        verdict,
    ]


def show(arch: str, lines: list[list[str]], markdown: bool) -> None:
    """Print one arch's table."""
    if markdown:
        for line in (COLUMNS, ["---"] * len(COLUMNS), *lines):
            print("| " + " | ".join(line) + " |")
        return
    table = Table(title=arch)
    for column in COLUMNS:
        table.add_column(column)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def judge(code: Code, used: list[waivers.Waiver], failures: list[str]) -> str:
    """The verdict on one kernel, in a word or with the reason of its waiver; notes the waiver used or the failure."""
    verdicts = []
    for check, problem in broken_limits(code):
        waiver = waiver_for(code, check)
        if waiver:
            used.append(waiver)
            verdicts.append(f"{check} waived: {waiver.reason}")
        else:
            failures.append(f"{code.arch} {code.kernel} ({code.label}, {code.dtype}): {check}: {problem}")
            verdicts.append(f"{check}: {problem}")
    return "; ".join(verdicts) or "ok"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m octavo.kernels.codegen", description=__doc__.splitlines()[0])
    for name, known in (("arch", MACHINES), ("op", CASES), ("dtype", DTYPES)):
        parser.add_argument(f"--{name}", action="append", metavar=name.upper(), help=f"of {', '.join(known)}; all")
    parser.add_argument("--quick", action="store_true", help="a representative part")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for name, known in (("arch", MACHINES), ("op", CASES), ("dtype", DTYPES)):
        unknown = set(getattr(options, name) or ()) - set(known)
        if unknown:
            print(f"--{name} must be one of {', '.join(known)}, not {sorted(unknown)[0]!r}", file=sys.stderr)
            return 2
    if knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: there is nothing to compile", file=sys.stderr)
        return 2
    used: list[waivers.Waiver] = []
    failures: list[str] = []
    archs, ops, dtypes = options.arch or MACHINES, options.op or CASES, options.dtype or DTYPES
    parts = [(op, dtype, arch, options.quick) for arch in archs for op in ops for dtype in dtypes]
    results = compile_parts(parts, options.jobs)
    for arch, of_arch in groupby(zip(parts, results, strict=True), lambda pair: pair[0][2]):
        lines = []
        for _, (codes, broken) in of_arch:
            lines += [cells(code, judge(code, used, failures)) for code in codes]
            failures += broken
        show(arch, lines, options.markdown)
    if not (options.arch or options.op or options.dtype or options.quick):
        failures += [f"waiver without a use: {waiver}" for waiver in waivers.WAIVERS if waiver not in used]
    if failures:
        print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0
