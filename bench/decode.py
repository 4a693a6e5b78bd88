"""Tokens per second and latency over batch sizes and context lengths, octavo's backends beside its peers.

Each configuration is first checked: its greedy tokens must be the reference's, as far as the arithmetic can tell.
Without options the grid suits the machine: on a CPU it ends in about three minutes, on a large GPU in about six.
"""

import argparse
from itertools import product

from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring import llama_bench
from octavo.bench.measuring.decoding import DecodePlan, DecodeRun
from octavo.bench.measuring.speculating import speculate
from octavo.bench.measuring.workloads import EFFORTS, grid_point
from octavo.bench.peers.formats import DENSE, FORMATS
from octavo.bench.peers.sources import open_source
from octavo.bench.run import ResultLog, run_command

EXAMPLE = "python -m octavo.bench decode --model smollm2 --batch 1,8 --context 128 --peers transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_contenders(parser, "auto,reference")
    parser.add_argument("--batch", metavar="N,...", help="batch sizes")
    parser.add_argument("--context", metavar="N,...", help="context lengths in tokens")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="generated for each prompt")
    parser.add_argument(
        "--speculative",
        metavar="WHO",
        help="guesses by ngram:4 or FOLDER:3 against none instead",
    )
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", help="small grid, few repeats")
    effort.add_argument("--full", dest="effort", action="store_const", const="full", help="large grid, many repeats")
    parser.set_defaults(effort="normal")
    parser.add_argument("--llama-bench", action="store_true", help="print pp512 and tg128 as llama-bench does instead")
    options.add_machine(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """tokens/s and latency over batch sizes and contexts, beside peers"""
    if arguments.speculative:
        return run_speculation(arguments, console)
    if arguments.llama_bench:  # has two points of its own
        arguments.batch, arguments.context, arguments.new_tokens = "1", "2", 2
    plan, absent = make_plan(arguments)
    if arguments.llama_bench:
        print(llama_bench.table(list(llama_bench.rows(plan))))
        return 0

    def work(log: ResultLog) -> None:
        for line in absent:
            console.print(line, style="yellow")
        DecodeRun(plan, log).measure_all()

    planned, dense = len(plan.entries) * len(plan.points), [name for name in plan.dtypes if name not in FORMATS]
    return run_command("decode", arguments, console, plan.device, planned, work, dense, plan.packages)


def run_speculation(arguments: argparse.Namespace, console: Console) -> int:
    """A table of texts for each precision; nothing is written."""
    device, code = options.device_of(arguments), 0
    for name in options.precisions(arguments.dtype, arguments.weights, device):
        dtype, weights = ("auto", name) if name in FORMATS else (name, DENSE)
        number = 128 if arguments.new_tokens is None else arguments.new_tokens
        repeats = EFFORTS[device.type, arguments.effort].min_repeats
        code |= speculate(console, arguments.model, dtype, weights, arguments.speculative, number, repeats)
    return code


def make_plan(arguments: argparse.Namespace) -> tuple[DecodePlan, list[str]]:
    """The command, checked as far as can be without measuring, and a line for each peer that is not there."""
    device = options.device_of(arguments)
    effort = EFFORTS[device.type, arguments.effort]
    new_tokens = effort.new_tokens if arguments.new_tokens is None else arguments.new_tokens
    batches = options.numbers(arguments.batch, "batch") if arguments.batch else effort.batches
    contexts = options.numbers(arguments.context, "context") if arguments.context else effort.contexts
    dtypes = options.precisions(arguments.dtype, arguments.weights, device)
    backends = options.backends(arguments.backend, device)
    present, absent = options.peers(arguments.peers, device.type)
    source = open_source(arguments.model)
    points = tuple(grid_point(source.config, *size, new_tokens) for size in product(batches, contexts))
    plan = DecodePlan(source, device, dtypes, backends, present, points, effort, arguments.seed)
    return plan, [*absent, *(f"{name} takes no weights in {', '.join(dtypes)}" for name in plan.idle_peers)]
