"""Results as Markdown: a table with the machine and the command below it. A run has a table of its own, so figures of a
CPU and of a GPU never share one."""

from collections.abc import Sequence

from octavo.bench.reporting import tables
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Measured

VIEWS = ("full", "summary", "small")
KNOWN = ("octavo", "llama.cpp", "transformers")  # contenders of the small view, by the start of their name


def render(results: Results, view: str = "full") -> str:
    """The run's table and where it comes from; summary: decode tokens/s only, a row a contender; small: less of it."""
    cells = results.latest
    if not cells:
        return f"_Nothing was measured._\n\n{provenance(results)}"
    if view != "full" and not isinstance(cells[0], Decode):
        raise ValueError(f"{results.path}: only a run of decode has a summary, this is one of {results.run.command}")
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


def _rate(record: Decode, cells: Sequence[Decode]) -> str:
    if not record.passed:
        return tables.MARKS[record.verdict]
    marks = f"{tables.noise(record.tpot_spread)}{'≠' if record.verdict == 'quantised' else ''}"
    ratio = tables.times(record.decode_tokens_per_s, tables.baseline_rate(cells, record))
    return f"{tables.number(record.decode_tokens_per_s)}{marks}{'' if ratio == '-' else f' ({ratio})'}"
