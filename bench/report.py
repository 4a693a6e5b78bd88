"""Makes a page of results, Markdown tables and pictures, or rewrites the tables of a README.

`--readme FILE ...` rewrites what stands between `<!-- bench:NAME -->` and `<!-- /bench -->` from
bench/results/NAME.jsonl; `<!-- bench:NAME summary -->` asks for decode tokens/s only, `<!-- bench:NAME small -->` for
those of the shortest context and the contenders that most readers know.
"""

import argparse
import re
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from octavo.bench.reporting import records
from octavo.bench.reporting.markdown import VIEWS, render
from octavo.bench.reporting.records import Results

EXAMPLE = "python -m octavo.bench report build/bench/20260101-120000"
COMMITTED = Path(__file__).parent / "results"
BLOCK = re.compile(r"<!-- bench:([\w./-]+)(?: (\w+))? -->\n(.*?)<!-- /bench -->", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS", help="folders or .jsonl files")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the page (where the first results are)")
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
    folder = arguments.output or runs[0].path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = write_page(runs, folder, console)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    console.print(f"written to {page}", soft_wrap=True)
    return 0


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
        console.print("no pictures, matplotlib is not installed: pip install 'octavo[bench]'", style="yellow")
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
    console.print(f"{len(BLOCK.findall(text))} tables of {readme} made anew")


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
