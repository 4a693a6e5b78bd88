"""Measures what the engine gains: a shared prefix computed once, requests run together instead of one by one.

prefix: requests that begin with the same tokens, prefix caching on against off. batching: requests of mixed lengths,
together against one by one. Both ways serve the same requests in turn, every repeat with prompts of its own; a time is
written down only if both ways said the same tokens, and if the reference agrees with them.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring.check import Verdict, Verifier
from octavo.bench.measuring.workloads import Request, at_least, ordinary
from octavo.bench.peers.formats import DENSE
from octavo.bench.reporting.schema import VERDICTS, Scenario
from octavo.bench.run import ResultLog, run_command
from octavo.gpt import LLM, SamplingParams

EXAMPLE = "python -m octavo.bench engine --scene batching --requests 32 --dtype float32"
SCENES = {"prefix": ("caching off", "caching on"), "batching": ("one by one", "together")}
REQUESTS = {"prefix": 64, "batching": 32}
SHARED, OWN, ANSWER = 512, 16, 8  # tokens of a request of the scene prefix
WIDTHS = (16, 256), (8, 64)  # prompt and output lengths of the scene batching, drawn evenly
BLOCK_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_one_model(parser)
    parser.add_argument("--scene", default="prefix,batching", metavar="NAME,...", help="(prefix,batching)")
    parser.add_argument("--requests", type=int, metavar="N", help="of a scene (64 with a prefix, 32 of mixed lengths)")
    parser.add_argument("--prefix", type=int, default=SHARED, metavar="N", help=f"shared tokens ({SHARED})")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(3)")
    options.add_machine(parser)


class EnginePlan:
    """The command, checked: ValueError where it cannot be carried out."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = options.device_of(arguments)
        self.prefix, self.repeats, self.seed = arguments.prefix, arguments.repeats, arguments.seed
        self.scenes = options.words(arguments.scene, "scene")
        if unknown := [name for name in self.scenes if name not in SCENES]:
            raise ValueError(f"scene must be {' or '.join(SCENES)}, not {unknown[0]!r}")
        # The requests of each scene.
        self.sizes = {
            name: arguments.requests if arguments.requests is not None else REQUESTS[name] for name in self.scenes
        }
        at_least(1, requests=min(self.sizes.values()), prefix=self.prefix, repeats=self.repeats)
        self.source, self.backend, self.dtype = options.one_model(arguments, self.device)
        if self.longest > (window := self.source.config.context_size):
            raise ValueError(f"a request of {self.longest} tokens is over the model's window of {window}")

    def requests(self, scene: str, repeat: int) -> list[Request]:
        generator = random.Random(f"{scene}/{self.seed}/{repeat}")
        tokens = ordinary(self.source.config)
        if scene == "prefix":
            shared = generator.choices(tokens, k=self.prefix)
            return [Request(shared + generator.choices(tokens, k=OWN), ANSWER) for _ in range(self.sizes[scene])]
        drawn = [[generator.randint(*bounds) for bounds in WIDTHS] for _ in range(self.sizes[scene])]
        return [Request(generator.choices(tokens, k=length), new_tokens) for length, new_tokens in drawn]

    @property
    def longest(self) -> int:
        """Tokens of the longest request that these scenes may have."""
        (_, prompt), (_, answer) = WIDTHS
        return max({"prefix": self.prefix + OWN + ANSWER, "batching": prompt + answer}[scene] for scene in self.scenes)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """prefix caching and continuous batching against doing without"""
    plan = EnginePlan(arguments)
    work = partial(measure_all, plan)
    return run_command("engine", arguments, console, plan.device, 2 * len(plan.scenes), work, (plan.dtype,))


def measure_all(plan: EnginePlan, log: ResultLog) -> None:
    """Log two lines for each scene that is not done; the engine is opened once."""
    known = {(record.scene, record.way) for record in log.done if record.passed}
    left = [scene for scene in plan.scenes if not all((scene, way) in known for way in SCENES[scene])]
    if not left:
        return
    blocks = max(plan.sizes.values()) * -(-plan.longest // BLOCK_SIZE)
    llm = LLM(
        plan.source.path or plan.source.name, backend=plan.backend, dtype=plan.dtype, device=plan.device.type,
        weights=DENSE, max_model_len=plan.longest, num_blocks=blocks, block_size=BLOCK_SIZE,
    )  # fmt: skip
    judge = Verifier(plan.source, plan.dtype, plan.device, plan.seed)
    for scene in left:
        for record in measure(plan, scene, llm, judge, log):
            log.keep(record)


def measure(plan: EnginePlan, scene: str, llm: LLM, judge: Verifier, log: ResultLog) -> Iterator[Scenario]:
    """Measure the scene both ways, in turn; one pass in the faster way is the warm-up."""
    base, better = (Variant(llm, name) for name in SCENES[scene])
    verdicts: list[Verdict] = []
    with log.progress() as bar:
        task = bar.add_task(scene, total=2 * plan.repeats + 1)
        better.serve(plan.requests(scene, 0))
        bar.advance(task)
        for repeat in range(1, plan.repeats + 1):
            requests, answers = plan.requests(scene, repeat), []
            for way in (base, better):
                answers.append(way.timed(requests))
                bar.advance(task)
            prompts = [request.prompt for request in requests]
            verdicts.append(judge.compare(prompts, answers[1], answers[0], exact=plan.backend.name == "triton"))
            if repeat == 1:
                verdicts.append(judge.check(prompts, answers[0], same_weights=True))
    worst = max(verdicts, key=lambda verdict: VERDICTS.index(verdict.status))
    requests = plan.requests(scene, 1)
    for way in (base, better):
        samples: dict[str, Any] = {"computed_tokens": way.computed[0], "seconds": way.seconds}
        yield Scenario(
            model=plan.source.name, dummy=plan.source.dummy, backend=plan.backend.name, dtype=plan.dtype, scene=scene,
            way=way.name, num_requests=len(requests), prompt_tokens=sum(len(request.prompt) for request in requests),
            new_tokens=sum(request.new_tokens for request in requests), verdict=worst.status, detail=worst.detail,
            **(samples if worst.status != "wrong" else {}),
        )  # fmt: skip


class Variant:
    """One of the two ways to serve a scene's requests, on an engine that both share."""

    def __init__(self, llm: LLM, name: str) -> None:
        self.llm, self.name = llm, name
        self.seconds: list[float] = []
        self.computed: list[int] = []

    def timed(self, requests: Sequence[Request]) -> list[list[int]]:
        before, start = self.llm.stats()["tokens_prefilled"], time.perf_counter()
        answers = self.serve(requests)
        self.seconds.append(round(time.perf_counter() - start, 6))
        self.computed.append(self.llm.stats()["tokens_prefilled"] - before)
        return answers

    def serve(self, requests: Sequence[Request]) -> list[list[int]]:
        """Greedy tokens of each request, from an engine that remembers nothing."""
        scheduler = self.llm.engine.scheduler
        scheduler.pool.reset()
        scheduler.prefix_cache.enabled = self.name != "caching off"
        size = 1 if self.name == "one by one" else len(requests)
        params = [SamplingParams(temperature=0, max_tokens=each.new_tokens, ignore_eos=True) for each in requests]
        prompts, outputs = [request.prompt for request in requests], []
        for i in range(0, len(requests), size):
            outputs += self.llm.generate(prompts[i : i + size], params[i : i + size], use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]
