"""What the tests of octavo.bench share: tiny checkpoints on disk, made-up records, the command without a process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.bench.__main__ import main
from octavo.bench.measuring.load_generator import Served
from octavo.bench.reporting.records import Writer
from octavo.bench.reporting.schema import Decode, Run, Scene, Serve
from octavo.bench.reporting.serve_table import figures

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
        ttft_s=[10 * step] * 3, step_s=[[step] * 8] * 3, ttft_median_s=10 * step,
        prefill_tokens_per_s=1.6 * batch / step,
        tpot_median_s=step, tpot_p90_s=step, tpot_p99_s=step, decode_tokens_per_s=batch / step, tpot_spread=0.0,
        ttft_spread=0.0, step_bytes=1000, bandwidth_share=0.5, compute_share=0.01, prefill_compute_share=0.2,
    )  # fmt: skip
    return replace(made, **fields)


def served(load: str, level: float, gap: float = 0.01, number: int = 10) -> Serve:
    """A line of a serve run whose requests all took the same times."""
    requests = [Served(5, i, i, [i + 0.1 + gap * k for k in range(6)], [7] * 6) for i in range(number)]
    found = figures(requests, ttft_bound_s=2.0, tpot_bound_s=0.2)
    return Serve("tiny", False, "cpu", "float32", "alpaca", load, level, number, 0, "same", "as alone", **found)


def scene(way: str, *seconds: float) -> Scene:
    """A line of an engine run."""
    middle = sorted(seconds)[len(seconds) // 2]
    return Scene(
        "tiny", False, "cpu", "float32", "batching", way, 32, 900, 90, "same", "", 900, list(seconds), middle, 0.1,
        90 / middle,
    )  # fmt: skip


def write(path: Path, run: Run, *cells: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in (run, *cells):
        Writer(path).write(line)
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
