"""Tokens per second and latency over batch sizes and context lengths, octavo's backends beside its peers.

Each configuration is first checked: its greedy tokens must be the reference's, as far as the arithmetic can tell.
Without options the grid suits the machine: on a CPU it ends in about three minutes, on a large GPU in about six.
"""

import argparse
from itertools import product

from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring.decoding import DecodePlan, DecodeRun
from octavo.bench.measuring.workloads import EFFORTS, grid_point
from octavo.bench.peers import registry
from octavo.bench.peers.sources import open_source
from octavo.bench.run import ResultLog, run_command
from octavo.kernels.weights import FORMATS

EXAMPLE = "python -m octavo.bench decode --model smollm2 --batch 1,8 --context 128 --peers transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="a name, a folder, a GGUF file or dummy:<shape> (smollm2)")
    parser.add_argument("--batch", metavar="N,...", help="batch sizes")
    parser.add_argument("--context", metavar="N,...", help="context lengths in tokens")
    parser.add_argument(
        "--backend", default="auto,reference", metavar="NAME,...",
        help="auto, reference, cpu, triton; triton-sample is triton with the reference's sample (auto,reference)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", metavar="NAME,...", help="auto, float32, bfloat16, float16 (auto)")
    parser.add_argument(
        "--weights",
        default="auto",
        metavar="NAME,...",
        help="formats measured besides dense weights: q8_0, q4_0, q4_1 (auto: none)",
    )
    parser.add_argument(
        "--peers", default="none", metavar="NAME,...",
        help=f"none, installed, {', '.join(registry.PEERS)}, or a variant such as llama.cpp:q8_0 (none)",
    )  # fmt: skip
    parser.add_argument("--new-tokens", type=int, metavar="N", help="generated for each prompt")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", help="small grid, few repeats")
    effort.add_argument("--full", dest="effort", action="store_const", const="full", help="large grid, many repeats")
    parser.set_defaults(effort="normal")
    options.add_machine(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """tokens/s and latency over batch sizes and contexts, beside peers"""
    plan, absent = make_plan(arguments)

    def work(log: ResultLog) -> None:
        for line in absent:
            console.print(line, style="yellow")
        DecodeRun(plan, log).measure_all()

    planned, dense = len(plan.entries) * len(plan.points), [name for name in plan.dtypes if name not in FORMATS]
    return run_command("decode", arguments, console, plan.device, planned, work, dense, plan.packages)


def make_plan(arguments: argparse.Namespace) -> tuple[DecodePlan, list[str]]:
    """The command, checked as far as can be without measuring, and a line for each peer that is not there."""
    device = options.device_of(arguments)
    effort = EFFORTS[device.type, arguments.effort]
    new_tokens = effort.new_tokens if arguments.new_tokens is None else arguments.new_tokens
    batches = options.numbers(arguments.batch, "batch") if arguments.batch else effort.batches
    contexts = options.numbers(arguments.context, "context") if arguments.context else effort.contexts
    dtypes = options.precisions(arguments.dtype, arguments.weights, device)
    backends = options.backends(arguments.backend, device)
    present, absent = _peers(arguments.peers, device.type)
    source = open_source(arguments.model)
    points = tuple(grid_point(source.config, *size, new_tokens) for size in product(batches, contexts))
    return DecodePlan(source, device, dtypes, backends, present, points, effort, arguments.seed), absent


def _peers(text: str, device_type: str) -> tuple[tuple[str, ...], list[str]]:
    if text == "none":
        return (), []
    names: list[str] = []
    for name in options.words(text, "peers"):
        names += registry.installed(device_type) if name == "installed" else [name]
    for name in names:
        registry.check_name(name)
    reasons = {name: registry.missing(name, device_type) for name in names}
    return tuple(name for name in names if not reasons[name]), [reason for reason in reasons.values() if reason]
