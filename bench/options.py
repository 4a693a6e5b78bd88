"""Options that several commands share, and the folder that results go to."""

import argparse
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from octavo.bench.measuring.workloads import at_least
from octavo.bench.peers import registry
from octavo.bench.peers.base import backend
from octavo.bench.peers.formats import FORMATS
from octavo.bench.peers.sources import ModelSource, open_source
from octavo.bench.reporting import records
from octavo.bench.reporting.records import Results
from octavo.gpt.loading.loader import resolve_device, resolve_dtype
from octavo.kernels.backends import best_for
from octavo.kernels.ops import Ops

RESULTS = Path("build/bench")  # where results go unless told otherwise, a folder a run


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch and of every peer (the physical cores)")
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="programs that each keep a core busy (0)"
    )
    add_output(parser)


def add_one_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="a name, a folder, a GGUF file or dummy:<shape> (smollm2)")
    parser.add_argument("--backend", default="auto", help="auto, reference, cpu, triton or package.module:NAME (auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")


def add_contenders(parser: argparse.ArgumentParser, backend: str) -> None:
    """The options of a command that runs several backends, dtypes, formats and peers on one model."""
    parser.add_argument("--model", default="smollm2", help="a name, a folder, a GGUF file or dummy:<shape> (smollm2)")
    parser.add_argument(
        "--backend", default=backend, metavar="NAME,...",
        help=f"auto, reference, cpu, triton; triton-sample is triton with the reference's sample ({backend})",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", metavar="NAME,...", help="auto, float32, bfloat16, float16 (auto)")
    parser.add_argument(
        "--weights", default="auto", metavar="NAME,...",
        help=f"formats measured besides dense weights: {', '.join(FORMATS)} (auto: none)",
    )  # fmt: skip
    parser.add_argument(
        "--peers", default="none", metavar="NAME,...",
        help=f"none, installed, {', '.join(registry.PEERS)}, or a variant such as llama.cpp:q8_0 (none)",
    )  # fmt: skip


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and random inputs (0)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"for the results ({RESULTS}/<date and time>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER, or with the newest one")


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device, after PyTorch was told how many threads there are."""
    if arguments.threads is not None:
        at_least(1, threads=arguments.threads)
        torch.set_num_threads(arguments.threads)
    return resolve_device(arguments.device)


def words(text: str, name: str) -> tuple[str, ...]:
    """A list with commas, without repetitions; ValueError where an entry is empty."""
    entries = tuple(dict.fromkeys(entry.strip() for entry in text.split(",")))
    if not all(entries):
        raise ValueError(f"{name} must be a list with commas, not {text!r}")
    return entries


def numbers(text: str, name: str, kind: type[Any] = int) -> tuple[Any, ...]:
    """Numbers of that kind with commas, ascending."""
    try:
        return tuple(sorted(kind(entry) for entry in words(text, name)))
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ValueError(f"{name} must be {whole}numbers with commas, not {text!r}") from None


def rates(text: str, name: str) -> tuple[float, ...]:
    """Numbers above zero with commas, ascending."""
    found = numbers(text, name, float)
    if not all(0 < value < float("inf") for value in found):
        raise ValueError(f"{name} must be above 0 and finite, not {text!r}")
    return found


def one_model(arguments: argparse.Namespace, device: torch.device) -> tuple[ModelSource, Ops, str]:
    """The model, the backend and the dtype of a command that takes one of each."""
    source, found = open_source(arguments.model), backends(arguments.backend, device)
    names = dtypes(arguments.dtype, device)
    for what, values in (("backend", found), ("dtype", names)):
        if len(values) != 1:
            raise ValueError(f"{what} must be one, not {len(values)}")
    return source, found[0], names[0]


def dtypes(text: str, device: torch.device) -> tuple[str, ...]:
    """The dtypes of that list, auto resolved."""
    names = [str(resolve_dtype(name, device)).removeprefix("torch.") for name in words(text, "dtype")]
    return tuple(dict.fromkeys(names))


def precisions(dtype: str, weights: str, device: torch.device) -> tuple[str, ...]:
    """The columns of a run: dtypes for dense weights, and formats of weights, whose activations are bfloat16."""
    formats = [name for name in words(weights, "weights") if name != "auto"]
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"weights must be auto or {', '.join(FORMATS)}, not {name!r}")
    dense = [name for name in words(dtype, "dtype") if name not in FORMATS]
    if old := [name for name in words(dtype, "dtype") if name in FORMATS]:
        print(f"--dtype {old[0]} is now --weights {old[0]} and will be refused", file=sys.stderr)
    return tuple(dict.fromkeys([*(dtypes(",".join(dense), device) if dense else ()), *formats, *old]))


def backends(text: str, device: torch.device) -> tuple[Ops, ...]:
    """The backends of that list; RuntimeError where one cannot run on the device, or could not be timed."""
    names = [best_for(device.type) if name == "auto" else name for name in words(text, "backend")]
    found = tuple(backend(name) for name in dict.fromkeys(names))
    if twice := [ops.name for i, ops in enumerate(found) if ops.name in {other.name for other in found[:i]}]:
        raise ValueError(f"two backends have the name {twice[0]!r}: their figures could not be told apart")
    for ops in found:
        if ops.name.startswith("triton") and device.type == "cpu":
            raise RuntimeError(f"backend {ops.name!r} needs a CUDA device: the interpreter's times mean nothing")
        if ops.name.startswith("cpu") and device.type == "cuda":
            raise RuntimeError(f"backend {ops.name!r} runs on the CPU only, the device is cuda")
    return found


def peers(text: str, device_type: str) -> tuple[tuple[str, ...], list[str]]:
    """The peers of that list that can run here, and a line for each that cannot; ValueError for an unknown name."""
    if text == "none":
        return (), []
    names: list[str] = []
    for name in words(text, "peers"):
        names += registry.installed(device_type) if name == "installed" else [name]
    for name in names:
        registry.check_name(name)
    reasons = {name: registry.missing(name, device_type) for name in names}
    return tuple(name for name in names if not reasons[name]), [reason for reason in reasons.values() if reason]


def results_file(arguments: argparse.Namespace, command: str) -> tuple[Path, Results | None]:
    """Where to write, made ready, and what is there already; ValueError rather than touching a finished run."""
    folder = arguments.output or (newest(command) if arguments.resume else None)
    folder = folder or RESULTS / datetime.now().strftime("%Y%m%d-%H%M%S")
    path = folder / f"{command}.jsonl"
    if path.exists() and not arguments.resume:
        raise ValueError(f"{path} exists: --resume goes on with it, another --output leaves it alone")
    before = records.read(path) if path.exists() else None
    if before and before.run.command != command:
        raise ValueError(f"{path} holds a run of {before.run.command}, not of {command}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    return path, before


def newest(command: str) -> Path | None:
    """The folder of the latest run of a command."""
    found = sorted(RESULTS.glob(f"*/{command}.jsonl"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def same_run(before: Results, here: dict[str, Any]) -> None:
    """ValueError unless a run can go on here: figures of two machines or commits never share a file."""
    for name in ("device", "device_name", "commit", "neighbours"):
        if (then := getattr(before.run, name)) != here[name]:
            raise ValueError(
                f"{before.path} was measured with {name} {then}, here it is {here[name]}: take a new --output"
            )
