"""What the tests of octavo.bench share: tiny checkpoints on disk, made-up records, the command without a process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.bench.__main__ import main
from octavo.bench.measuring.load_generator import Served, samples_of
from octavo.bench.reporting.records import append
from octavo.bench.reporting.schema import Decode, Run, Scenario, Serve

from tiny import TINY, tiny_model

RUN = Run(
    command="decode", command_line="python -m octavo.bench decode", date="2026-01-01T00:00:00+00:00", seed=0,
    commit="0123456789abcdef", dirty=False, device="cpu", device_name="a processor", num_cores=2, threads=2,
    memory_bytes=2**34, driver=None, clocks=None, load=0.0, versions={"torch": "2.13.0"}, copy_bytes_per_s=2e10,
    read_bytes_per_s=3e10, matmul_flops_per_s={"float32": 1e11}, planned=2,
)  # fmt: skip


def record(contender: str = "octavo:cpu", step: float = 0.01, batch: int = 1, **fields: Any) -> Decode:
    """A line of a decode run whose steps all took the same time."""
    made = Decode(
        model="tiny", dummy=False, contender=contender, version="1", dtype="float32", batch=batch, context=16,
        prompt_tokens=16, new_tokens=9, verdict="same", detail="all 9 tokens", load_s=1.0, warmup_s=1.0,
        ttft_s=[10 * step] * 3, step_s=[[step] * 8] * 3, step_bytes=1000, bandwidth_share=0.5,
        compute_share=0.01, prefill_compute_share=0.2,
    )  # fmt: skip
    return replace(made, **fields)


def served(load: str, level: float, gap: float = 0.01, number: int = 10) -> Serve:
    """A line of a serve run whose requests all took the same times."""
    return serve_line(
        [Served(5, i, i, [i + 0.1 + gap * k for k in range(6)], [7] * 6) for i in range(number)], load, level
    )


def serve_line(requests: Sequence[Served], load: str, level: float, tpot_bound_s: float = 0.2) -> Serve:
    """The line of these requests, the bound of the first token 2 s."""
    return Serve(
        "tiny", False, "cpu", "float32", "alpaca", load, level, len(requests), 0, "same", "as alone", ttft_bound_s=2.0,
        tpot_bound_s=tpot_bound_s, **samples_of(requests),
    )  # fmt: skip


def scene(way: str, *seconds: float) -> Scenario:
    """A line of an engine run."""
    return Scenario("tiny", False, "cpu", "float32", "batching", way, 32, 900, 90, "same", "", 900, list(seconds))


def write(path: Path, run: Run, *cells: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in (run, *cells):
        append(path, line)
    return path


def checkpoint(folder: Path, family: str) -> Path:
    """A tiny network as a Hugging Face folder without a tokenizer."""
    from octavo.bench.peers.export_hf import network

    network(tiny_model(TINY[family])).save_pretrained(folder)
    return folder


def bench(*arguments: Any) -> int:
    """`python -m octavo.bench`; argparse's own exits included."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
