"""Makes a page of results, Markdown tables and pictures, or rewrites the tables of a README.

`--readme FILE ...` rewrites what stands between `<!-- bench:NAME -->` and `<!-- /bench -->` from
bench/results/NAME.jsonl; `<!-- bench:NAME summary -->` asks for decode tokens/s only, `<!-- bench:NAME small -->` for
those of the shortest context and the contenders that most readers know, `<!-- bench:NAME targets -->` for the speeds
that are wanted beside those that were measured, as `--targets` prints them. A run has a table of its own, so figures
of a CPU and of a GPU never share one.
"""

import argparse
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.text import Text

from octavo.bench.reporting import columns, figures, records, tables, targets
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Measured

EXAMPLE = "python -m octavo.bench report build/bench/20260101-120000"
COMMITTED = Path(__file__).parent / "results"
BLOCK = re.compile(r"<!-- bench:([\w./-]+)(?: (\w+))? -->\n(.*?)<!-- /bench -->", re.DOTALL)
VIEWS = ("full", "summary", "small", "targets")
KNOWN = ("octavo", "llama.cpp", "transformers")  # contenders of the small view, by the start of their name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS", help="folders or .jsonl files")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the page (where the first results are)")
    parser.add_argument("--targets", action="store_true", help="print the ratios to peers that are wanted, and reached")
    parser.add_argument("--readme", type=Path, nargs="+", metavar="FILE", help="rewrite the tables of these pages")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Markdown tables and pictures of results"""
    if bool(arguments.results) == bool(arguments.readme):
        raise ValueError("report takes either RESULTS or --readme FILE")
    if arguments.readme:
        for readme in arguments.readme:
            refresh(readme, console)
        return 0
    runs = [result for path in arguments.results for result in read_all(path)]
    if arguments.targets:
        print_targets(runs, console)
        return 0
    folder = arguments.output or runs[0].path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = write_page(runs, folder, console)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    console.print(f"written to {page}", soft_wrap=True)
    return 0


def print_targets(runs: Sequence[Results], console: Console) -> None:
    """The targets beside each run of decode."""
    runs = [results for results in runs if results.run.command == "decode"]
    if not runs:
        raise ValueError("targets are those of decode, and there is no run of it")
    for results in runs:
        console.print(render(results, "targets"), soft_wrap=True, markup=False, highlight=False)


def read_all(path: Path) -> list[Results]:
    """Every file of results in a folder, or the one file."""
    if not path.is_dir():
        return [records.read(path)]
    if found := sorted(path.glob("*.jsonl")):
        return [records.read(file) for file in found]
    raise FileNotFoundError(f"{path} holds no file of results")


def write_page(runs: list[Results], folder: Path, console: Console) -> Path:
    """report.md and its pictures; runs on CPUs first, each under its own heading."""
    able = find_spec("matplotlib") is not None
    if not able:
        console.print(Text("no pictures, matplotlib is not installed: pip install 'octavo[bench]'", "yellow"))
    parts = ["# Benchmark results"]
    for results in sorted(runs, key=lambda results: results.run.device != "cpu"):
        parts.append(f"## {results.path.stem}: {results.run.command} on {results.run.machine}")
        parts.append(render(results))
        if able:
            from octavo.bench.reporting.plots import draw

            parts += [f"![{picture.stem}]({picture.name})" for picture in draw(results, folder)]
    page = folder / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def refresh(readme: Path, console: Console) -> None:
    """Rewrites the bench blocks of a file."""
    if not readme.is_file():
        raise FileNotFoundError(f"{readme}: no such file")
    text = readme.read_text(encoding="utf-8")
    readme.write_text(refreshed(text), encoding="utf-8")
    console.print(f"{len(BLOCK.findall(text))} tables of {readme} made anew", soft_wrap=True)


def refreshed(text: str) -> str:
    """The text with every bench block made anew from the committed results."""
    return BLOCK.sub(_block, text)


def _block(match: re.Match[str]) -> str:
    name, view = match[1], match[2] or "full"
    if view not in VIEWS:
        raise ValueError(f"bench:{name} {view}: a table is {', '.join(VIEWS[:-1])} or {VIEWS[-1]}")
    path = COMMITTED / f"{name}.jsonl"
    if not path.exists() and not match[3].strip():
        return match[0]  # an empty block waits for its results
    table = render(records.read(path), view)
    first = match[0].split("\n", 1)[0]
    return f"{first}\n{table}\n<!-- /bench -->"


def render(results: Results, view: str = "full") -> str:
    """The run's table and where it comes from; summary: decode tokens/s only, a row a contender; small: less of it."""
    cells = results.latest
    if not cells:
        return f"_Nothing was measured._\n\n{provenance(results)}"
    if view != "full" and not isinstance(cells[0], Decode):
        raise ValueError(
            f"{results.path}: only a run of decode has a view {view}, this is one of {results.run.command}"
        )
    if view == "targets":
        return f"{_targets(cells)}\n\n{provenance(results)}"
    if view == "small":
        context = min(cell.context for cell in cells)
        cells = [cell for cell in cells if cell.context == context and cell.contender.startswith(KNOWN)]
    body = _full(cells) if view == "full" else _summary(cells)
    return f"{body}\n\n{provenance(results)}"


def provenance(results: Results) -> str:
    """Machine, software, command: what a reader needs to measure it again."""
    measured, planned = len(results.latest), results.run.planned
    machine, software, *warnings = tables.header(results.run)
    if measured < planned:
        warnings.append(f"Cut off: {measured} of {planned} lines.")
    command = f"`{results.run.command_line}`"
    return "  \n".join([machine, software, command, *(f"**{warning}**" for warning in warnings)])


def _full(cells: Sequence[Measured]) -> str:
    table = tables.table_of(cells)
    rows = [[column.name for column in table.columns], *table.sparse_rows()]
    rule = ["---:" if column.is_figure else "---" for column in table.columns]
    return "\n".join([_grid(rows, rule), "", table.caption, *_failures(cells)])


def _grid(rows: Sequence[Sequence[str]], rule: Sequence[str]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def _failures(cells: Sequence[Measured]) -> list[str]:
    """A line for each reason why there is no figure, with the places where it struck."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if not cell.passed:
            reasons.setdefault(f"{cell.who}, {cell.verdict}: {cell.detail}", []).append(cell.place)
    return ["", *(f"- {reason} ({', '.join(places)})" for reason, places in reasons.items())] if reasons else []


def _summary(cells: Sequence[Decode]) -> str:
    """Decode tokens/s: contenders down, batch x context across; in brackets, times the baseline."""
    places = sorted({(cell.batch, cell.context) for cell in cells})
    rates = {(cell.contender, cell.dtype, cell.batch, cell.context): _rate(cell, cells) for cell in cells}
    names = dict.fromkeys((cell.contender, cell.dtype) for cell in cells)
    rows = [[*name, *(rates.get((*name, *place), "") for place in places)] for name in names]
    header = ["contender", "dtype", *(f"{batch} x {context}" for batch, context in places)]
    base = tables.baseline(cells)
    note = f"{tables.model(cells)}: decode tokens/s at batch x context, and times {base} in the same dtype."
    return "\n".join([_grid([header, *rows], ["---", "---", *["---:"] * len(places)]), "", note])


def _targets(cells: Sequence[Decode]) -> str:
    """What is wanted of each format of weights, a row a target, and whether it was reached."""
    scores = targets.scores(cells)
    if not scores:
        return f"_No target is known for {tables.model(cells)}._"
    rows = [targets.HEADER, *(score.row() for score in scores)]
    words = [score.word for score in scores]
    count = f"{words.count('yes')} of {len(words)} targets reached, {words.count('not measured')} not measured."
    return f"{_grid(rows, ['---'] * len(targets.HEADER))}\n\n{count}"


def _rate(record: Decode, cells: Sequence[Decode]) -> str:
    if not record.passed:
        return columns.MARKS[record.verdict]
    marks = f"{figures.noise(record.tpot_spread)}{'≠' if record.verdict == 'quantised' else ''}"
    ratio = figures.times(record.decode_tokens_per_s, tables.baseline_rate(cells, record))
    return f"{figures.number(record.decode_tokens_per_s)}{marks}{'' if ratio == '-' else f' ({ratio})'}"
