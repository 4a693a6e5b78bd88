"""How well a model predicts a text with its weights in each format, beside llama.cpp on the same weights.

The text is prose that lies beside the program, or a file of your own, and is read in windows that know nothing of each
other. All contenders get the same token ids, those of the model's own tokenizer.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring.decoding import DecodePlan, Entry
from octavo.bench.measuring.workloads import EFFORTS, GridPoint, at_least
from octavo.bench.peers import registry
from octavo.bench.peers.base import UnsupportedError
from octavo.bench.peers.sources import ModelSource, open_source
from octavo.bench.reporting.schema import Perplexity
from octavo.bench.run import ResultLog, reason, run_command
from octavo.gpt.loading.loader import load_tokenizer
from octavo.gpt.quoting import one_line

EXAMPLE = "python -m octavo.bench perplexity --weights q8_0 --peers llama.cpp"
PROSE = Path(__file__).parent / "measuring" / "prose.txt"
WINDOW = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_contenders(parser, "auto")
    parser.add_argument("--text", type=Path, default=PROSE, metavar="FILE", help="UTF-8 text (prose beside the bench)")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N", help=f"tokens read at once ({WINDOW})")
    options.add_machine(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """how well each format of weights predicts a text, beside llama.cpp"""
    device = options.device_of(arguments)
    dtypes = options.precisions(arguments.dtype, arguments.weights, device)
    backends = options.backends(arguments.backend, device)
    present, absent = options.peers(arguments.peers, device.type)
    source = open_source(arguments.model)
    windows = read_windows(source, arguments.text, arguments.window)
    point = GridPoint(1, arguments.window, arguments.window, 0)
    plan = DecodePlan(
        source, device, dtypes, backends, present, (point,), EFFORTS[device.type, "quick"], arguments.seed
    )  # fmt: skip

    def work(log: ResultLog) -> None:
        for line in absent:
            console.print(line, style="yellow")
        for entry in plan.entries:
            about = _about(plan.source, entry, arguments.text, windows)
            if not log.has(about.key):
                log.keep(score(plan, entry, about, windows))

    return run_command("perplexity", arguments, console, device, len(plan.entries), work, (), plan.packages)


def read_windows(source: ModelSource, text: Path, window: int) -> list[list[int]]:
    """The text's token ids, `window` at a time; FileNotFoundError or ValueError where there are none."""
    at_least(2, window=window)
    if source.dummy:
        raise ValueError(f"model {source.name} has random weights: it predicts no text")
    if window > source.config.context_size:
        raise ValueError(f"window {window} is over the model's window of {source.config.context_size}")
    if not text.is_file():
        raise FileNotFoundError(f"{one_line(str(text), 200)}: no such file")
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{one_line(str(text), 200)}: not UTF-8 text") from None
    ids = load_tokenizer(source.path or source.name).encode(words)
    windows = [ids[start : start + window] for start in range(0, len(ids), window)]
    if len(ids) < 2:
        raise ValueError(f"{one_line(str(text), 200)}: {len(ids)} tokens, a score needs at least 2")
    return windows if len(windows[-1]) > 1 else windows[:-1]


def score(plan: DecodePlan, entry: Entry, about: Perplexity, windows: list[list[int]]) -> Perplexity:
    """The line with its figure: the mean over all predictions, or why there is none."""
    try:
        plan.prepare(entry)
        contender = plan.open(entry)
        try:
            nll = sum(contender.nll(ids) * (len(ids) - 1) for ids in windows) / about.num_tokens
            if not math.isfinite(nll):
                raise ValueError(f"its mean over the text is {nll}")
            return replace(
                about, version=contender.version, verdict="same" if contender.same_weights else "quantised",
                weight_bits=8 * contender.weight_bytes, nll=nll,
            )  # fmt: skip
        finally:
            contender.close()
    except Exception as error:
        status = "unsupported" if isinstance(error, UnsupportedError) else "failed"
        return replace(about, verdict=status, detail=reason(error))


def _about(source: ModelSource, entry: Entry, text: Path, windows: list[list[int]]) -> Perplexity:
    """A line that says what is measured, and no more yet."""
    num_tokens = sum(len(ids) - 1 for ids in windows)
    dtype = registry.dtype_of(entry.name, entry.dtype)
    return Perplexity(source.name, entry.name, "", dtype, text.name, len(windows[0]), num_tokens, "", "")
