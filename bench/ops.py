"""Kernel by kernel: each op of a model on each backend, PyTorch's own beside them, caches cold.

An op is timed only if its result is right: within four times the error of plain PyTorch in the same dtype.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from octavo.bench import options
from octavo.bench.measuring import machine
from octavo.bench.measuring.accuracy import verdict
from octavo.bench.measuring.op_cases import Arguments, Case, Shapes, cases
from octavo.bench.measuring.roofline import measure_peaks
from octavo.bench.measuring.timing import measure, median, percentile
from octavo.bench.peers.kernels import PEER_OPS
from octavo.bench.peers.sources import open_source
from octavo.bench.reporting import tables
from octavo.bench.reporting.records import Writer
from octavo.bench.reporting.schema import Op, Run
from octavo.gpt.loading.loader import DTYPES
from octavo.kernels.ops import REFERENCE, Ops

EXAMPLE = "python -m octavo.bench ops --model dummy:gpt2 --only paged_attention,linear"
SECONDS = {"cpu": 0.15, "cuda": 0.05}  # timed for each op, at least
SIZES = {  # sequences, context, tokens of a prefill
    "cpu": ((8,), (512,), (512,)),
    "cuda": ((1, 16, 64, 256), (1024, 4096), (512, 1024, 4096)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="whose shapes (smollm2)")
    parser.add_argument("--backend", default="auto,reference", metavar="NAME,...", help="as in decode (auto,reference)")
    parser.add_argument("--dtype", default="auto", metavar="NAME,...", help="auto, float32, bfloat16, float16 (auto)")
    parser.add_argument("--batch", metavar="N,...", help="sequences in decode (8, on a GPU 1,16,64,256)")
    parser.add_argument("--context", metavar="N,...", help="cached tokens in decode (512, on a GPU 1024,4096)")
    parser.add_argument("--prefill", metavar="N,...", help="tokens in prefill (512, on a GPU 512,1024,4096)")
    parser.add_argument("--only", metavar="OP,...", help="these ops")
    options.add_machine(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """kernel by kernel, on the backends that run here"""
    device = options.device_of(arguments)
    backends, dtypes = options.backends(arguments.backend, device), options.dtypes(arguments.dtype, device)
    wanted = [(dtype, case) for dtype in dtypes for case in _cases(arguments, device, dtype)]
    path, before = options.results_file(arguments, "ops")
    header, done = (before.run, before.cells) if before else (_header(arguments.seed, device, dtypes, len(wanted)), [])
    if before:
        options.same_run(before, machine.describe(device))
    else:
        Writer(path).write(header)
    tables.header(header, console)
    session = Session(header, device, backends, Writer(path), done)
    try:
        for dtype, case in track(wanted, "", console=console, disable=not console.is_terminal, transient=True):
            session.measure(case, dtype)
    finally:
        show(session.done, console)
        console.print(f"written to {path}", soft_wrap=True)
    return 0


def _cases(arguments: argparse.Namespace, device: torch.device, dtype: str) -> list[Case]:
    given = {name: getattr(arguments, name) for name in ("batch", "context", "prefill")}
    sizes = [
        usual if text is None else options.numbers(text, name)
        for (name, text), usual in zip(given.items(), SIZES[device.type], strict=True)
    ]
    for name, values in zip(given, sizes, strict=True):
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, not {min(values)}")
    config, kind = open_source(arguments.model).config, DTYPES[dtype]
    every = [
        Shapes(config, device, kind, batch, context, prefill, arguments.seed)
        for batch, context, prefill in product(*sizes)
    ]
    found = list({(case.op, case.shape): case for shapes in every for case in cases(shapes)}.values())
    if arguments.only is None:
        return found
    names, known = options.words(arguments.only, "only"), list(dict.fromkeys(case.op for case in found))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown op {unknown[0]!r}: this model has {', '.join(known)}")
    return [case for case in found if case.op in names]


def _header(seed: int, device: torch.device, dtypes: Sequence[str], planned: int) -> Run:
    peaks = measure_peaks(device, dtypes)
    return Run(command="ops", seed=seed, planned=planned, **peaks._asdict(), **machine.describe(device))


class Session:
    """Measures cases one by one; every line is on disk before the next."""

    def __init__(self, run: Run, device: torch.device, backends: Sequence[Ops], writer: Writer, done: list[Op]) -> None:
        self.run, self.device, self.backends, self.writer, self.done = run, device, backends, writer, done

    @torch.inference_mode()
    def measure(self, case: Case, dtype: str) -> None:
        """The case on every backend and peer that has it and is not done yet."""
        arguments, known = case.make(), {record.key for record in self.done if record.passed}
        calls: dict[str, tuple[Callable[..., Any], Arguments]] = {
            ops.name: (getattr(ops, case.op), packed(case, ops, arguments))
            for ops in self.backends
            if ops.name == "reference" or getattr(ops, case.op) is not getattr(REFERENCE, case.op)
        }
        for name, prepare in PEER_OPS.items():
            if (prepared := prepare(case, arguments)) is not None:
                calls[name] = partial(_ignoring, prepared), arguments
        for name, (call, own) in calls.items():
            if (case.op, case.shape, name, dtype) not in known:
                record = self._one(case, name, dtype, call, own, arguments)
                self.writer.write(record)
                self.done.append(record)

    def _one(
        self, case: Case, name: str, dtype: str, call: Callable[..., Any], own: Arguments, arguments: Arguments
    ) -> Op:
        samples: list[float] = []
        try:
            word = judge(case, call, own, arguments)
            detail = ""
            if word != "wrong":
                samples = measure(lambda: call(*own, **case.kwargs), self.device, SECONDS[self.device.type])
        except Exception as error:
            word, detail = "failed", " ".join(str(error).split())[:300] or type(error).__name__
        middle = median(samples) if samples else None
        rate = self.run.matmul_flops_per_s.get(dtype)
        return Op(
            op=case.op, shape=case.shape, backend=name, dtype=dtype, verdict=word, detail=detail,
            samples=[round(sample, 9) for sample in samples], median_s=middle,
            p10_s=percentile(samples, 0.1) if samples else None, p90_s=percentile(samples, 0.9) if samples else None,
            num_bytes=case.num_bytes, num_flops=case.num_flops,
            bandwidth_share=middle and case.num_bytes / middle / self.run.bandwidth,
            compute_share=case.num_flops / middle / rate if middle and rate and case.num_flops else None,
        )  # fmt: skip


WITH_WEIGHT = ("linear", "lm_head_sample")  # as the second argument


def packed(case: Case, ops: Ops, arguments: Arguments) -> Arguments:
    """The arguments as the backend takes them: weights in its own form."""
    if case.op not in WITH_WEIGHT:
        return arguments
    x, weight, *rest = arguments
    return x, ops.pack(weight), *rest


def judge(case: Case, call: Callable[..., Any], own: Arguments, arguments: Arguments) -> str:
    """`accuracy.verdict` where the call takes a packed weight and the reference the plain one."""
    reference = getattr(REFERENCE, case.op)
    if case.op not in WITH_WEIGHT:
        return verdict(case, call, reference, arguments)
    return verdict(case, lambda x, _, *rest, **kwargs: call(x, own[1], *rest, **kwargs), reference, arguments)


def _ignoring(prepared: Callable[[], Any], *_: Any, **__: Any) -> Any:
    return prepared()


def show(records: Sequence[Op], console: Console) -> None:
    """A table a dtype, backends above one another."""
    latest = {record.key: record for record in records}.values()
    for dtype in dict.fromkeys(record.dtype for record in latest):
        table = Table(title=dtype, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
        for name in COLUMNS:
            justify: Any = "left" if name in ("op", "shape", "backend") else "right"
            table.add_column("\n".join(name.rsplit(" ", 1)), justify=justify, no_wrap=True)
        previous: list[str] = []
        for record in latest:
            if record.dtype == dtype:
                cells = row(record)
                table.add_row(*(["", ""] if previous == cells[:2] else cells[:2]), *cells[2:])
                previous = cells[:2]
        console.print(table)


COLUMNS = ("op", "shape", "backend", "check", "median us", "p10", "p90", "GB/s", "of bandw.", "GFLOP/s", "of matmul")


def row(record: Op) -> list[str]:
    """A record's cells under `COLUMNS`."""
    start = [record.op, record.shape, record.backend, tables.MARKS[record.verdict]]
    if record.median_s is None or record.p10_s is None or record.p90_s is None:
        return [*start, *["-"] * 7]
    return [
        *start,
        *(tables.number(seconds * 1e6) for seconds in (record.median_s, record.p10_s, record.p90_s)),
        tables.number(record.num_bytes / record.median_s / 1e9),
        tables.percent(record.bandwidth_share),
        tables.number(record.num_flops / record.median_s / 1e9) if record.num_flops else "-",
        tables.percent(record.compute_share),
    ]
