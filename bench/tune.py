"""Searches the launch table's configs on the GPU at hand and prints the faster ones as JSON; a person commits them.

A candidate changes warps, stages and the tiles on which no bit depends: BLOCK_K of `linear` and the key tile of
attention stay. It is timed only if its results are right, and proposed only if it wins again in a second round.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product, starmap
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from octavo.bench import options
from octavo.bench.measuring.accuracy import verdict
from octavo.bench.measuring.op_cases import Case, Shapes, distinct_cases
from octavo.bench.measuring.timing import measure, median
from octavo.bench.peers.sources import open_source
from octavo.gpt.loading.loader import DTYPES
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE, Ops
from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import Config

EXAMPLE = "python -m octavo.bench tune --model dummy:gpt2 --dtype bfloat16 > configs.json"
GAIN = 0.03  # a candidate must save this share of the time, twice
SECONDS = 0.02  # timed for each candidate and case
ROUNDS = 3  # of the second round, current config and winner in turn
TOKENS = (16, 32, 64)  # decode batches: the largest that each tile for few tokens holds
LOOKUPS = {"linear": "BLOCK_N", "causal_attention": "BLOCK_M"}  # op -> its tile on which no bit depends
Timer = Callable[[Case, Config], float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="dummy:gpt2", help="whose shapes (dummy:gpt2)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16 (bfloat16)")
    parser.add_argument("--prefill", type=int, default=4096, metavar="N", help="tokens of a prompt (4096)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (0)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """search launch configs on this GPU, print the faster ones as JSON"""
    if not torch.cuda.is_available():
        raise RuntimeError("tune needs a CUDA device: the launch table is for GPUs, and this PyTorch sees none")
    device = torch.device("cuda")
    (dtype,) = options.dtypes(arguments.dtype, device)
    model_config, triton = open_source(arguments.model).config, backends.load("triton")
    sizes = [
        (model_config, device, DTYPES[dtype], tokens, 1024, arguments.prefill, arguments.seed) for tokens in TOKENS
    ]
    found = [case for case in distinct_cases(starmap(Shapes, sizes)) if case.op in LOOKUPS]
    progress, proposals = Console(stderr=True), []
    users = users_of_configs(found, device, DTYPES[dtype], model_config.head_dim)
    with torch.inference_mode():
        for config, own in track(users, "tuning", console=progress, disable=not progress.is_terminal):
            best, saved = search(config, own, timer(triton, device))
            if best != config:
                proposals.append(proposal(own[0].op, launch.arch_of(device), dtype, config, best, saved))
    progress.print(f"{len(proposals)} of {len(users)} configs can be faster")
    print(json.dumps(proposals, indent=1))
    return 0


def proposal(op: str, arch: str, dtype: str, old: Config, new: Config, saved: float) -> dict[str, Any]:
    """What the op's table should hold in place of a config."""
    return {"arch": arch, "dtype": dtype, "op": op, "old": old, "new": new, "saved": round(saved, 3)}


def users_of_configs(
    found: Sequence[Case], device: torch.device, dtype: torch.dtype, head_dim: int
) -> list[tuple[Config, list[Case]]]:
    """Each config of the table that these cases are launched with, and which cases those are."""
    users: dict[int, tuple[Config, list[Case]]] = {}
    for case in found:
        if case.op == "linear":
            x, weight, *_ = case.make()
            config = launch.linear(device, dtype, x.shape[0], weight.shape[0])
        else:
            config = launch.attention(device, dtype, head_dim)
        users.setdefault(id(config), (config, []))[1].append(case)
    return list(users.values())


def candidates(op: str, config: Config) -> Iterator[Config]:
    """Neighbours of the config: half, the same and twice the free tile, other warps and stages."""
    free = LOOKUPS[op]
    tiles = [size for size in (config[free] // 2, config[free], config[free] * 2) if 16 <= size <= 256]
    stages = sorted({max(1, config["num_stages"] + step) for step in (-4, -2, -1, 0, 1, 2)})
    for tile, warps, stage in product(tiles, (2, 4, 8), stages):
        candidate = {**config, free: tile, "num_warps": warps, "num_stages": stage}
        if candidate != config:
            yield candidate


def search(now: Config, own: Sequence[Case], time: Timer) -> tuple[Config, float]:
    """The fastest config that is right, and the share of time it saves; the present one unless another wins twice."""

    def total(config: Config) -> float:
        times = [time(case, config) for case in own]
        return sum(t for t in times if t is not None) if None not in times else float("inf")

    before = total(now)
    best = min(candidates(own[0].op, now), key=total)
    if not total(best) < (1 - GAIN) * before:
        return now, 0.0
    again = [(total(now), total(best)) for _ in range(ROUNDS)]
    saved = 1 - median([new for _, new in again]) / median([old for old, _ in again])
    return (best, saved) if saved >= GAIN else (now, 0.0)


def timer(triton: Ops, device: torch.device) -> Timer:
    """Tells the seconds of a case launched with a config; None where it does not compile, or its result is wrong."""
    made = cache(lambda case: case.make())

    def seconds(case: Case, config: Config) -> float | None:
        call = getattr(triton, case.op)
        with launched_with(case.op, config):
            try:
                if verdict(case, call, getattr(REFERENCE, case.op), made(case)) == "wrong":
                    return None
                return median(measure(partial(call, *made(case)), device, SECONDS))
            except Exception:  # a GPU short of resources for the config says so in whatever words its compiler has
                return None

    return seconds


@contextmanager
def launched_with(op: str, config: Config) -> Iterator[None]:
    """The op's lookup gives that config, for as long as the block runs."""
    name = "linear" if op == "linear" else "attention"
    lookup = getattr(launch, name)
    setattr(launch, name, lambda *_: config)
    try:
        yield
    finally:
        setattr(launch, name, lookup)
