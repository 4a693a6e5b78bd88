"""Measures `AsyncLLM` under load, open-loop (Poisson) and closed-loop, with requests of mixed lengths.

Some of the requests are first run alone and judged by the reference; under every load the same ones must say the same
again, and only then are its times written down. Times of an open loop count from the moment a request was due.
Goodput counts the requests whose first token and whose mean time per further token were both within the bounds.

With --url the same requests go to a server, as token ids of --model's vocabulary: nothing is judged there.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring import workloads
from octavo.bench.measuring.check import Verdict, Verifier, spread_rows
from octavo.bench.measuring.load_generator import Served, ask, samples_of, serve
from octavo.bench.measuring.remote import Remote
from octavo.bench.measuring.workloads import Load, Request, at_least
from octavo.bench.peers.formats import DENSE
from octavo.bench.reporting.schema import Serve
from octavo.bench.reporting.vllm_keys import headline, vllm_result
from octavo.bench.run import ResultLog, aside, reason, run_command
from octavo.gpt import AsyncLLM

EXAMPLE = "python -m octavo.bench serve --rate 1,2,4 --callers 8 --mix sharegpt --requests 64"
USUAL: dict[str, dict[str, Any]] = {
    "cpu": {"rate": "1,2,4", "callers": "1,8", "mix": "alpaca", "requests": 32, "ttft_ms": 2000, "tpot_ms": 200},
    "cuda": {"rate": "8,32,128", "callers": "8,64", "mix": "sharegpt", "requests": 256, "ttft_ms": 500, "tpot_ms": 50},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def usual(name: str) -> str:
        return f"({USUAL['cpu'][name]}; on a GPU {USUAL['cuda'][name]})"

    options.add_one_model(parser)
    parser.add_argument("--rate", metavar="R,...", help=f"open loop: requests a second, or none {usual('rate')}")
    parser.add_argument("--callers", metavar="N,...", help=f"closed loop: callers, or none {usual('callers')}")
    parser.add_argument("--mix", help=f"of lengths: {', '.join(workloads.MIXES)}, fixed:PROMPT:OUTPUT {usual('mix')}")
    parser.add_argument("--requests", type=int, metavar="N", help=f"under each load {usual('requests')}")
    parser.add_argument("--ttft-ms", type=float, metavar="MS", help=f"bound of the first token {usual('ttft_ms')}")
    parser.add_argument("--tpot-ms", type=float, metavar="MS", help=f"bound of the mean gap {usual('tpot_ms')}")
    parser.add_argument("--max-num-seqs", type=int, default=64, metavar="N", help="that run together (64)")
    parser.add_argument("--url", help="load the server there instead, by /v1/completions")
    parser.add_argument("--api-key", metavar="KEY", help="that the server asks for")
    parser.add_argument("--save-result", type=Path, metavar="FILE", help="write the one load's figures in vLLM's keys")
    options.add_machine(parser)


class ServePlan:
    """The command, checked: ValueError where it cannot be carried out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = options.device_of(arguments)
        for name, value in USUAL[self.device.type].items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        at_least(1, requests=arguments.requests, max_num_seqs=arguments.max_num_seqs)
        for name in ("ttft_ms", "tpot_ms"):
            if not getattr(arguments, name) > 0:
                raise ValueError(f"{name.replace('_', '-')} must be above 0, not {getattr(arguments, name):g}")
        self.ttft_s, self.tpot_s = arguments.ttft_ms / 1e3, arguments.tpot_ms / 1e3
        self.mix, self.max_num_seqs, self.seed = arguments.mix, arguments.max_num_seqs, arguments.seed
        mix = workloads.mix_of(self.mix)
        self.source, self.backend, self.dtype = options.one_model(arguments, self.device)
        self.number = arguments.requests
        self.requests = workloads.requests(self.source.config, mix, self.number, self.seed)
        self.checked = spread_rows(len(self.requests))  # indices of the requests that are also run alone
        self.loads, self.file = _loads(arguments.rate, arguments.callers), arguments.save_result
        if self.file is not None:
            _check_file(self.file, len(self.loads))

    def save(self, result: dict[str, Any]) -> None:
        """Write a load's figures where --save-result asks for them."""
        if self.file is not None:
            self.file.write_text(json.dumps(result, indent=1) + "\n")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """load on AsyncLLM, or on a server: throughput, latency, goodput"""
    plan = ServePlan(arguments)
    if arguments.url:
        asyncio.run(load_server(plan, Remote(arguments.url, arguments.api_key), console))
        return 0

    def work(log: ResultLog) -> None:
        asyncio.run(measure_all(plan, log))

    return run_command("serve", arguments, console, plan.device, len(plan.loads), work, (plan.dtype,))


def _loads(rates: str, callers: str) -> list[Load]:
    closed = () if callers == "none" else options.numbers(callers, "callers")
    opened = () if rates == "none" else options.rates(rates, "rate")
    at_least(1, callers=min(closed, default=1))
    if not closed and not opened:
        raise ValueError("rate and callers are both none: no load is left")
    return [*(Load("closed", number) for number in closed), *(Load("open", rate) for rate in opened)]


def _check_file(path: Path, num_loads: int) -> None:
    """ValueError unless one result can be written there."""
    if num_loads != 1:
        raise ValueError(f"--save-result takes one load, not {num_loads}: --rate none --callers 8, for one")
    try:
        path.open("a").close()
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror or error}") from None


async def load_server(plan: ServePlan, remote: Remote, console: Console) -> None:
    """The loads on a server, each with prompts of its own, so that none profits from what the server has cached."""
    try:
        await remote.connect()
        console.print(f"{remote.url} serves {remote.model}", soft_wrap=True)
        for i, load in enumerate(plan.loads):
            requests = workloads.requests(plan.source.config, workloads.mix_of(plan.mix), plan.number, plan.seed + i)
            result = vllm_result(await serve(remote.ask, requests, load, plan.seed), load, remote.model, "openai")
            console.print(headline(result, load), soft_wrap=True)
            plan.save(result)
    finally:
        await remote.close()


async def measure_all(plan: ServePlan, log: ResultLog) -> None:
    """One server, under the loads that are not done, one after another."""
    left = [load for load in plan.loads if not log.has(_record(plan, load, Verdict("", "")).key)]
    if not left:
        return
    llm = AsyncLLM(
        plan.source.path or plan.source.name, backend=plan.backend, dtype=plan.dtype, device=plan.device.type,
        weights=DENSE, max_num_seqs=plan.max_num_seqs,
    )  # fmt: skip
    try:
        start = time.perf_counter()
        alone = [await _alone(llm, plan.requests[row]) for row in plan.checked]
        warmup_s = time.perf_counter() - start
        check = aside(Check, plan, alone)
        with log.progress() as bar:
            for load in left:
                task = bar.add_task(str(load), total=len(plan.requests))
                log.keep(await _measure(plan, load, llm, check, warmup_s, partial(bar.advance, task)))
    finally:
        await llm.close()


async def _measure(
    plan: ServePlan, load: Load, llm: AsyncLLM, check: "Check", warmup_s: float, note: Callable[[], object]
) -> Serve:
    if check.first.status == "wrong":
        return _record(plan, load, check.first)
    llm.llm.engine.scheduler.pool.reset()  # no load profits from the prefixes of the one before
    try:
        served = await serve(partial(ask, llm), plan.requests, load, plan.seed, note)
    except Exception as error:
        return _record(plan, load, Verdict("failed", reason(error)))
    verdict = aside(check, served)
    if verdict.status != "wrong":
        plan.save(vllm_result(served, load, plan.source.name, "octavo"))
    return _record(plan, load, verdict, served, warmup_s)


def _record(
    plan: ServePlan, load: Load, verdict: Verdict, served: Sequence[Served] = (), warmup_s: float | None = None
) -> Serve:
    return Serve(
        plan.source.name, plan.source.dummy, plan.backend.name, plan.dtype, plan.mix, load.kind, load.level,
        len(plan.requests), plan.seed, verdict.status, verdict.detail, warmup_s=warmup_s, ttft_bound_s=plan.ttft_s,
        tpot_bound_s=plan.tpot_s, **(samples_of(served) if verdict.status != "wrong" else {}),
    )  # fmt: skip


class Check:
    """Judges the requests that were also run alone: by the reference, then, under a load, by what they said alone."""

    def __init__(self, plan: ServePlan, alone: list[list[int]]) -> None:
        self.rows, self.alone, self.exact = plan.checked, alone, plan.backend.name == "triton"
        self.prompts = [plan.requests[row].prompt for row in self.rows]
        self.judge = Verifier(plan.source, plan.dtype, plan.device, plan.seed)
        self.first = self.judge.check(self.prompts, alone, same_weights=True)

    def __call__(self, served: Sequence[Served]) -> Verdict:
        answers = [served[row].tokens or own for row, own in zip(self.rows, self.alone, strict=True)]  # none if refused
        verdict = self.judge.compare(self.prompts, answers, self.alone, self.exact)
        if verdict.status == "same" and self.first.status == "rounding":
            return Verdict("rounding", f"{verdict.detail}; alone {self.first.detail}")
        return verdict


async def _alone(llm: AsyncLLM, request: Request) -> list[int]:
    served = Served(len(request.prompt), time.perf_counter())
    await ask(llm, request, served)
    return served.tokens
