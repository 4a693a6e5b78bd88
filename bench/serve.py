"""Many callers at once: load on `AsyncLLM`, open-loop (Poisson) and closed-loop, with requests of mixed lengths.

Some of the requests are first run alone and judged by the reference; under every load the same ones must say the same
again, and only then are its times written down. Times of an open loop count from the moment a request was due.
Goodput counts the requests whose first token and whose mean time per further token were both within the bounds.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from octavo.bench import options
from octavo.bench.measuring import loads, machine
from octavo.bench.measuring.check import Verdict, Verifier, spread_rows
from octavo.bench.measuring.load_generator import Served, ask, serve
from octavo.bench.measuring.loads import Load, Request
from octavo.bench.measuring.roofline import measure_peaks
from octavo.bench.peers.sources import Source, open_source
from octavo.bench.reporting import serve_table, tables
from octavo.bench.reporting.records import Writer
from octavo.bench.reporting.schema import Run, Serve
from octavo.gpt import AsyncLLM
from octavo.kernels.ops import Ops

EXAMPLE = "python -m octavo.bench serve --rate 1,2,4 --callers 8 --mix sharegpt --requests 64"
USUAL: dict[str, dict[str, Any]] = {
    "cpu": {"rate": "1,2,4", "callers": "1,8", "mix": "alpaca", "requests": 32, "ttft_ms": 2000, "tpot_ms": 200},
    "cuda": {"rate": "8,32,128", "callers": "8,64", "mix": "sharegpt", "requests": 256, "ttft_ms": 500, "tpot_ms": 50},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def usual(name: str) -> str:
        return f"({USUAL['cpu'][name]}; on a GPU {USUAL['cuda'][name]})"

    parser.add_argument("--model", default="smollm2", help="a name, a folder, a GGUF file or dummy:<shape> (smollm2)")
    parser.add_argument("--backend", default="auto", help="auto, reference, cpu or triton (auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")
    parser.add_argument("--rate", metavar="R,...", help=f"open loop: requests a second, or none {usual('rate')}")
    parser.add_argument("--callers", metavar="N,...", help=f"closed loop: callers, or none {usual('callers')}")
    parser.add_argument("--mix", help=f"of lengths: {', '.join(loads.MIXES)}, fixed:PROMPT:OUTPUT {usual('mix')}")
    parser.add_argument("--requests", type=int, metavar="N", help=f"under each load {usual('requests')}")
    parser.add_argument("--ttft-ms", type=float, metavar="MS", help=f"bound of the first token {usual('ttft_ms')}")
    parser.add_argument("--tpot-ms", type=float, metavar="MS", help=f"bound of the mean gap {usual('tpot_ms')}")
    parser.add_argument("--max-num-seqs", type=int, default=64, metavar="N", help="that run together (64)")
    options.add_machine(parser)
    options.add_output(parser)


@dataclass(frozen=True)
class Plan:
    """A checked command."""

    source: Source
    device: torch.device
    backend: Ops
    dtype: str
    mix: str
    requests: list[Request]
    loads: tuple[Load, ...]
    ttft_s: float
    tpot_s: float
    max_num_seqs: int
    seed: int

    @property
    def checked(self) -> list[int]:
        """Indices of the requests that are also run alone."""
        return spread_rows(len(self.requests))


def run(arguments: argparse.Namespace, console: Console) -> int:
    """load on AsyncLLM: throughput, latency, goodput"""
    plan = make_plan(arguments)
    path, before = options.results_file(arguments, "serve")
    if before is not None:
        options.same_run(before, machine.describe(plan.device))
        header, done = before.run, before.cells
    else:
        peaks = _aside(measure_peaks, plan.device, (plan.dtype,))
        about = machine.describe(plan.device)
        header, done = Run("serve", seed=plan.seed, planned=len(plan.loads), **peaks._asdict(), **about), []
        Writer(path).write(header)
    tables.header(header, console)
    session = Session(plan, Writer(path), console, done)
    try:
        asyncio.run(session.measure_all())
    finally:
        console.print(serve_table.table(session.done))
        console.print(f"written to {path}", soft_wrap=True)
    return 0


def make_plan(arguments: argparse.Namespace) -> Plan:
    device = options.device_of(arguments)
    for name, value in USUAL[device.type].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    for name in ("requests", "max_num_seqs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(arguments, name)}")
    for name in ("ttft_ms", "tpot_ms"):
        if not getattr(arguments, name) > 0:
            raise ValueError(f"{name.replace('_', '-')} must be above 0, not {getattr(arguments, name):g}")
    (dtype,) = options.single(options.dtypes(arguments.dtype, device), "dtype")
    (backend,) = options.single(options.backends(arguments.backend, device), "backend")
    mix, source = loads.mix_of(arguments.mix), open_source(arguments.model)
    requests = loads.requests(source.config, mix, arguments.requests, arguments.seed)
    return Plan(
        source, device, backend, dtype, arguments.mix, requests, _loads(arguments.rate, arguments.callers),
        arguments.ttft_ms / 1e3, arguments.tpot_ms / 1e3, arguments.max_num_seqs, arguments.seed,
    )  # fmt: skip


def _loads(rates: str, callers: str) -> tuple[Load, ...]:
    found = [] if callers == "none" else [Load("closed", number) for number in options.numbers(callers, "callers")]
    found += [] if rates == "none" else [Load("open", rate) for rate in options.rates(rates, "rate")]
    for load in found:
        if load.kind == "closed" and load.level < 1:
            raise ValueError(f"callers must be at least 1, not {load.level:g}")
    if not found:
        raise ValueError("rate and callers are both none: no load is left")
    return tuple(found)


class Session:
    """One server, all loads one after another; every line is on disk before the next is measured."""

    def __init__(self, plan: Plan, writer: Writer, console: Console, done: list[Serve]) -> None:
        self.plan, self.writer, self.console, self.done = plan, writer, console, done
        self.about: dict[str, Any] = {
            "model": plan.source.name, "dummy": plan.source.dummy, "backend": plan.backend.name, "dtype": plan.dtype,
            "mix": plan.mix, "num_requests": len(plan.requests), "seed": plan.seed,
        }  # fmt: skip

    async def measure_all(self) -> None:
        plan = self.plan
        known = {record.key for record in self.done if record.passed}
        left = [load for load in plan.loads if self._record(load, Verdict("", "")).key not in known]
        if not left:
            return
        llm = AsyncLLM(
            plan.source.path or plan.source.name, backend=plan.backend, dtype=plan.dtype, device=plan.device.type,
            max_num_seqs=plan.max_num_seqs,
        )  # fmt: skip
        bar = Progress(console=self.console, disable=not self.console.is_terminal, transient=True)
        try:
            with bar:
                await self._check_and_measure(llm, left, bar)
        finally:
            await llm.close()

    async def _check_and_measure(self, llm: AsyncLLM, left: Sequence[Load], bar: Progress) -> None:
        plan, start = self.plan, time.perf_counter()
        own = [plan.requests[row] for row in plan.checked]
        alone = [await _alone(llm, request) for request in own]
        warmup_s = time.perf_counter() - start
        check = _aside(Check, plan, alone)
        for load in left:
            if check.first.word == "wrong":
                self._keep(self._record(load, check.first))
                continue
            task = bar.add_task(str(load), total=len(plan.requests))
            llm.llm.engine.scheduler.pool.reset()  # no load profits from the prefixes of the one before
            try:
                served = await serve(llm, plan.requests, load, plan.seed, partial(bar.advance, task))
            except Exception as error:
                self._keep(self._record(load, Verdict("failed", " ".join(str(error).split())[:300])))
            else:
                self._keep(self._record(load, _aside(check, served), served, warmup_s))

    def _record(
        self, load: Load, verdict: Verdict, served: Sequence[Served] = (), warmup_s: float | None = None
    ) -> Serve:
        passed = served and verdict.word != "wrong"
        figures = serve_table.figures(served, self.plan.ttft_s, self.plan.tpot_s) if passed else {}
        return Serve(
            **self.about, load=load.kind, level=load.level, verdict=verdict.word, detail=verdict.detail,
            warmup_s=warmup_s, **figures,
        )  # fmt: skip

    def _keep(self, record: Serve) -> None:
        self.writer.write(record)
        self.done.append(record)
        self.console.print(serve_table.line(record))


class Check:
    """Judges the requests that were also run alone: by the reference, then, under a load, by what they said alone."""

    def __init__(self, plan: Plan, alone: list[list[int]]) -> None:
        self.rows, self.alone, self.exact = plan.checked, alone, plan.backend.name == "triton"
        self.prompts = [plan.requests[row].prompt for row in self.rows]
        self.judge = Verifier(plan.source, plan.dtype, plan.device, plan.seed)
        self.first = self.judge.check(self.prompts, alone, same_weights=True)

    def __call__(self, served: Sequence[Served]) -> Verdict:
        answers = [served[row].tokens or own for row, own in zip(self.rows, self.alone, strict=True)]  # none if refused
        verdict = self.judge.compare(self.prompts, answers, self.alone, self.exact)
        if verdict.word == "same" and self.first.word == "rounding":
            return Verdict("rounding", f"{verdict.detail}; alone {self.first.detail}")
        return verdict


def _aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a thread that ends with it, as do the OpenMP threads it started: they would slow the server's own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


async def _alone(llm: AsyncLLM, request: Request) -> list[int]:
    served = Served(len(request.prompt), time.perf_counter())
    await ask(llm, request, served)
    return served.tokens
