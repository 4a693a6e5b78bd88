"""Searches the launch table's rows on the GPU at hand and prints the faster rows as JSON; a person commits them.

A candidate changes warps, stages and the tiles on which no bit depends: BLOCK_K of `linear` and the key tile of
attention stay. It is timed only if its results are right, and proposed only if it wins again in a second round.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from octavo.bench import options
from octavo.bench.measuring.accuracy import verdict
from octavo.bench.measuring.op_cases import Case, Shapes, cases
from octavo.bench.measuring.timing import measure, median
from octavo.bench.peers.sources import open_source
from octavo.gpt.loading.loader import DTYPES
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE, Ops
from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import Row

EXAMPLE = "python -m octavo.bench tune --model dummy:gpt2 --dtype bfloat16 > rows.json"
GAIN = 0.03  # a candidate must save this share of the time, twice
SECONDS = 0.02  # timed for each candidate and case
ROUNDS = 3  # of the second round, current row and winner in turn
TOKENS = (16, 32, 64)  # decode batches: the largest that each thin tile holds


class Place(NamedTuple):
    """Where a row stands: `LINEAR["sm_90", 2].few[0]`, or `ATTENTION["sm_90", 2][64]` with no field."""

    table: str
    key: tuple[str, int]
    field: str | None
    number: int  # of the row in its field, or its key

    def __str__(self) -> str:
        name = f'{self.table}["{self.key[0]}", {self.key[1]}]'
        return f"{name}.{self.field}[{self.number}]" if self.field else f"{name}[{self.number}]"


Timer = Callable[[Case, Place, Row], float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="dummy:gpt2", help="whose shapes (dummy:gpt2)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16 (bfloat16)")
    parser.add_argument("--prefill", type=int, default=4096, metavar="N", help="tokens of a prompt (4096)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (0)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """search launch rows on this GPU, print the faster ones as JSON"""
    if not torch.cuda.is_available():
        raise RuntimeError("tune needs a CUDA device: the launch table is for GPUs, and this PyTorch sees none")
    device = torch.device("cuda")
    (dtype,) = options.dtypes(arguments.dtype, device)
    config, triton = open_source(arguments.model).config, backends.load("triton")
    found: list[Case] = []
    for tokens in TOKENS:
        shapes = Shapes(config, device, DTYPES[dtype], tokens, 1024, arguments.prefill, arguments.seed)
        found += [case for case in cases(shapes) if case.op in ("linear", "causal_attention")]
    unique = list({(case.op, case.shape): case for case in found}.values())
    progress = Console(stderr=True)
    places = users(unique, device, DTYPES[dtype], config.head_dim)
    changes: list[tuple[Place, Row]] = []
    with torch.inference_mode():
        for place in track(list(places), "tuning", console=progress, disable=not progress.is_terminal):
            row, saved = search(place, places[place], Timing(triton, device))
            if row != current(place):
                changes.append((place, row))
                progress.print(f"{place}: {current(place).kwargs} -> {row.kwargs}, {100 * saved:.0f} % less time")
    progress.print(f"{len(changes)} of {len(places)} rows can be faster")
    print(json.dumps([proposal(place, row, dtype) for place, row in changes], indent=1))
    return 0


def proposal(place: Place, row: Row, dtype: str) -> dict[str, Any]:
    """What the table should hold at that place."""
    return {"arch": place.key[0], "dtype": dtype, "place": str(place), "row": row.kwargs}


def current(place: Place) -> Row:
    """The row that the table holds now."""
    rows: Any = getattr(launch, place.table)[place.key]
    return rows[place.number] if place.field is None else getattr(rows, place.field)[place.number]


def users(found: Sequence[Case], device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[Place, list[Case]]:
    """The rows that these cases are launched with, and which cases those are."""
    key = launch.arch_of(device), dtype.itemsize
    placed: dict[Place, list[Case]] = {}
    for case in found:
        if case.op == "linear":
            x, weight = case.make()
            row, table = launch.linear(device, dtype, x.shape[0], weight.shape[0]), launch.LINEAR[key]
            own = [Place("LINEAR", key, f, i) for f in ("few", "thin", "tall") for i, r in _rows(table, f) if r is row]
        else:
            row = launch.attention(device, dtype, head_dim)
            own = [Place("ATTENTION", key, None, width) for width, r in launch.ATTENTION[key].items() if r is row]
        placed.setdefault(own[0], []).append(case)
    return placed


def _rows(table: launch.LinearRows, field: str) -> list[tuple[int, Row]]:
    return list(enumerate(getattr(table, field)))


def candidates(place: Place, row: Row) -> Iterator[Row]:
    """Neighbours of the row: half, the same and twice the free tile, other warps and stages."""
    free = "BLOCK_N" if place.table == "LINEAR" else "BLOCK_M"
    tiles = [size for size in (row.tiles[free] // 2, row.tiles[free], row.tiles[free] * 2) if 16 <= size <= 256]
    stages = sorted({max(1, row.num_stages + step) for step in (-4, -2, -1, 0, 1, 2)})
    for tile, warps, stage in product(tiles, (2, 4, 8), stages):
        candidate = replace(row, num_warps=warps, num_stages=stage, tiles={**row.tiles, free: tile})
        if candidate != row:
            yield candidate


def search(place: Place, own: Sequence[Case], time: Timer) -> tuple[Row, float]:
    """The fastest row that is right, and the share of time it saves; the present one unless another wins twice."""
    now = current(place)

    def total(row: Row) -> float:
        times = [time(case, place, row) for case in own]
        return sum(t for t in times if t is not None) if None not in times else float("inf")

    before = total(now)
    best = min(candidates(place, now), key=total)
    if not total(best) < (1 - GAIN) * before:
        return now, 0.0
    again = [(total(now), total(best)) for _ in range(ROUNDS)]
    saved = 1 - median([new for _, new in again]) / median([old for old, _ in again])
    return (best, saved) if saved >= GAIN else (now, 0.0)


class Timing:
    """Seconds of a case with a row in the table; None where it does not compile, or its result is wrong."""

    def __init__(self, triton: Ops, device: torch.device) -> None:
        self.triton, self.device = triton, device
        self._arguments: dict[tuple[str, str], tuple[Any, ...]] = {}

    def __call__(self, case: Case, place: Place, row: Row) -> float | None:
        key = case.op, case.shape
        arguments = self._arguments[key] = self._arguments.get(key) or case.make()
        call = getattr(self.triton, case.op)
        with in_place(place, row):
            try:
                if verdict(case, call, getattr(REFERENCE, case.op), arguments) == "wrong":
                    return None
                return median(measure(lambda: call(*arguments, **case.kwargs), self.device, SECONDS))
            except Exception:  # too many resources for this GPU, in whatever words the compiler has for it
                return None


@contextmanager
def in_place(place: Place, row: Row) -> Iterator[None]:
    """The launch table with that row in it, for as long as the block runs."""
    table = getattr(launch, place.table)
    rows = table[place.key]
    if place.field is None:
        table[place.key] = {**rows, place.number: row}
    else:
        own = [row if i == place.number else r for i, r in _rows(rows, place.field)]
        table[place.key] = replace(rows, **{place.field: tuple(own)})
    try:
        yield
    finally:
        table[place.key] = rows
