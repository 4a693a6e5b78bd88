"""Rows as llama.cpp's llama-bench prints them: tokens/s of a prompt of 512 (pp512), of 128 generated alone (tg128)."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from statistics import fmean, pstdev
from typing import NamedTuple

import torch

from octavo.bench.measuring.decoding import DecodePlan
from octavo.bench.measuring.roofline import step_weights
from octavo.bench.measuring.workloads import GridPoint, prompts
from octavo.bench.peers.base import Contender
from octavo.gpt.models.registry import empty_network

REPEATS = 5  # as llama-bench, after a first that is not counted
PROMPT, GENERATED = 512, 128
HEADER = "model", "size", "params", "backend", "threads", "test", "t/s"


class Row(NamedTuple):
    """One test of one contender."""

    model: str
    size: float  # bytes of the weights that a step reads
    params: int
    backend: str
    threads: int
    test: str
    speeds: list[float]  # tokens/s of each repeat

    @property
    def cells(self) -> list[str]:
        speed = f"{fmean(self.speeds):.2f} ± {pstdev(self.speeds):.2f}"
        size, params = f"{self.size / 2**20:.2f} MiB", f"{self.params / 1e6:.2f} M"
        return [self.model, size, params, self.backend, str(self.threads), self.test, speed]


def rows(plan: DecodePlan) -> Iterator[Row]:
    """Measure every contender of the plan. ValueError where the model's window is too short."""
    need, window = max(PROMPT + 2, GENERATED + 2), plan.source.config.context_size
    if window < need:
        raise ValueError(f"--llama-bench needs a window of {need} tokens, {plan.source.name} has {window}")
    points = GridPoint(1, PROMPT, PROMPT, 2), GridPoint(1, GENERATED, 1, GENERATED + 1)
    plan = replace(plan, points=points)
    params = empty_network(plan.source.config).num_parameters
    for entry in plan.entries:
        plan.prepare(entry)
        with closing(plan.open(entry)) as contender:
            size = step_weights(plan.source.config) * contender.weight_bytes
            about = f"{plan.source.name} {contender.dtype}", size, params, contender.name, torch.get_num_threads()
            for test, point in zip((f"pp{PROMPT}", f"tg{GENERATED}"), points, strict=True):
                yield Row(*about, test, [_speed(plan, contender, point, repeat) for repeat in range(REPEATS + 1)][1:])


def _speed(plan: DecodePlan, contender: Contender, point: GridPoint, repeat: int) -> float:
    made = contender.generate(prompts(plan.source.config, point, plan.seed, repeat), point.new_tokens)
    return PROMPT / made.ttft_s if point.prompt_tokens == PROMPT else 1 / fmean(made.step_s)


def table(found: list[Row]) -> str:
    """The rows as Markdown, numbers to the right."""
    lines = [list(HEADER), *(row.cells for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    rule = [f" {'-' * width}{' ' if i in (0, 3) else ':'}" for i, width in enumerate(widths)]
    sides = ["<" if i in (0, 3) else ">" for i in range(len(HEADER))]
    texts = [
        f"| {' | '.join(f'{cell:{side}{width}}' for cell, side, width in zip(line, sides, widths, strict=True))} |"
        for line in lines
    ]
    return "\n".join([texts[0], f"|{'|'.join(rule)}|", *texts[1:]])
