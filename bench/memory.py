"""What each contender takes of the machine's memory, in each format: while it opens the model, and while it answers.

Each runs in a process of its own, one after another, so that nothing another one did is counted. What the process held
before, with the packages imported, is taken off.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from rich.console import Console

from octavo.bench import options
from octavo.bench.decode import make_plan
from octavo.bench.measuring.decoding import DecodePlan, Entry
from octavo.bench.measuring.machine import PeakMemory
from octavo.bench.measuring.roofline import step_weights
from octavo.bench.measuring.workloads import CHECK, GridPoint, at_least, prompts
from octavo.bench.peers import registry
from octavo.bench.peers.base import Contender, UnsupportedError
from octavo.bench.reporting.schema import Memory
from octavo.bench.run import ResultLog, reason, run_command

EXAMPLE = "python -m octavo.bench memory --weights q8_0,file --peers llama.cpp"
FEW_LENGTHS = 10  # after which more lengths should take no more
NEW_TOKENS = 8
DEFAULTS = {"batch": "1", "context": "128", "new_tokens": NEW_TOKENS, "effort": "quick"}  # of the point answered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_contenders(parser, "auto")
    parser.add_argument("--context", metavar="N", help=f"tokens of the prompt ({DEFAULTS['context']})")
    parser.add_argument("--lengths", type=int, default=0, metavar="N", help="then prompts of 1 to N tokens (0)")
    options.add_machine(parser)
    parser.set_defaults(**DEFAULTS)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """what each contender takes while it loads and answers, in a process of its own"""
    at_least(0, lengths=arguments.lengths)
    plan, absent = make_plan(arguments)
    if plan.device.type != "cpu":
        raise ValueError("memory is that of a process: it needs --device cpu")
    if arguments.lengths > (room := plan.source.config.context_size - NEW_TOKENS):
        raise ValueError(f"lengths {arguments.lengths} is over the {room} tokens that the model's window has room for")

    def work(log: ResultLog) -> None:
        for line in absent:
            console.print(line, style="yellow")
        for number, entry in enumerate(plan.entries):
            about = _about(plan, entry, arguments.lengths)
            if not log.has(about.key):
                log.keep(_measured(plan, entry, about, arguments, number))

    return run_command("memory", arguments, console, plan.device, len(plan.entries), work, (), plan.packages)


def _measured(
    plan: DecodePlan, entry: Entry, about: Memory, arguments: argparse.Namespace, number: int
) -> Memory:  # fmt: skip
    """The line with its figures, or why there are none."""
    try:
        plan.prepare(entry)
        chosen = argparse.Namespace(**{name: value for name, value in vars(arguments).items() if name != "run"})
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure, chosen, number, about).result()
    except Exception as error:
        status = "unsupported" if isinstance(error, UnsupportedError) else "failed"
        return replace(about, verdict=status, detail=reason(error))


def measure(arguments: argparse.Namespace, number: int, about: Memory) -> Memory:
    """Open that contender of the command in this process, let it answer, and note what it held and kept."""
    plan, _ = make_plan(arguments)
    entry, (point,) = plan.entries[number], plan.points
    if isinstance(entry.who, str):
        registry.load(entry.who)
    memory = PeakMemory(plan.device)
    with memory.at_work():
        start = time.perf_counter()
        contender = plan.open(entry)
        load_s = time.perf_counter() - start
    if contender.dtype != about.dtype:
        raise UnsupportedError(f"it runs in {contender.dtype} here")
    load_peak, loaded = memory.peak, memory.held
    with memory.at_work():
        contender.generate(prompts(plan.source.config, point, plan.seed, CHECK), point.new_tokens)
    known = memory.peak is not None
    record = replace(
        about, version=contender.version, load_s=load_s,
        verdict="same" if contender.same_weights else "quantised",
        weights_bytes=int(step_weights(plan.source.config) * contender.weight_bytes), load_peak_bytes=load_peak,
        loaded_bytes=loaded if known else None, peak_bytes=memory.peak,
        resident_bytes=memory.held if known else None,
    )  # fmt: skip
    if known:
        record = replace(record, grown_bytes=_grown(plan, contender, arguments.lengths))
    contender.close()  # a peer's threads that run on would abort the process as it ends
    return record


def _grown(plan: DecodePlan, contender: Contender, lengths: int) -> int | None:
    """Bytes that are kept from the tenth length of a prompt to the last."""
    if lengths <= FEW_LENGTHS:
        return None
    memory = PeakMemory(plan.device)
    for part in range(1, FEW_LENGTHS + 1), range(FEW_LENGTHS + 1, lengths + 1):
        memory.held = 0
        with memory.at_work():
            for length in part:
                point = GridPoint(1, length, length, 2)
                contender.generate(prompts(plan.source.config, point, plan.seed, CHECK), point.new_tokens)
                contender.forget()  # else a prefix cache fills its pages for the first time, up to its size
    return memory.held


def _about(plan: DecodePlan, entry: Entry, lengths: int) -> Memory:
    """A line that says what is measured, and no more yet."""
    source, dtype = plan.source, registry.dtype_of(entry.name, entry.dtype)
    return Memory(source.name, source.dummy, entry.name, "", dtype, lengths, "", "")
