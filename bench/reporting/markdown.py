"""Results as Markdown: a table with the machine and the command beside it. A run has tables of its own, so figures of
a CPU and of a GPU never share one."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from octavo.bench import host, ops
from octavo.bench.reporting import engine_table, serve_table, tables
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Host, Op, Scene, Serve

VIEWS = ("full", "summary", "small")
KNOWN = ("octavo", "llama.cpp", "transformers")  # contenders of the small view, by the start of their name


def render(results: Results, view: str = "full") -> str:
    """The run's table and where it comes from; summary: decode tokens/s only, a row a contender; small: less of it."""
    cells = list({cell.key: cell for cell in results.cells}.values())
    if not cells:
        return f"_Nothing was measured._\n\n{provenance(results)}"
    if view != "full" and not isinstance(cells[0], Decode):
        raise ValueError(f"{results.path}: only a run of decode has a summary, this is one of {results.run.command}")
    if view == "small":
        context = min(cell.context for cell in cells)
        cells = [cell for cell in cells if cell.context == context and cell.contender.startswith(KNOWN)]
    body = BODIES[type(cells[0])](cells) if view == "full" else _summary(cells)
    return f"{body}\n\n{provenance(results)}"


def provenance(results: Results) -> str:
    """Machine, software, command: what a reader needs to measure it again."""
    run, measured = results.run, len({cell.key for cell in results.cells})
    rates = "".join(f", {name} matmul {rate / 1e12:.3g} TFLOP/s" for name, rate in run.matmul_flops_per_s.items())
    lines = [
        f"{run.machine}, {run.threads} threads, bandwidth {run.bandwidth / 1e9:.3g} GB/s{rates} (measured)."
        + (f" Driver {run.driver}." if run.driver else ""),
        f"{tables.software(run)}; {run.date[:10]}; seed {run.seed}.",
        f"`{run.command_line}`",
    ]
    if warning := tables.busy(run):
        lines.append(f"**{warning[0].upper()}{warning[1:]}.**")
    if measured < run.planned:
        lines.append(f"**Cut off: {measured} of {run.planned} lines.**")
    return "  \n".join(lines)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _decode(cells: Sequence[Decode]) -> str:
    base, rows = tables.baseline(cells), []
    for place, group in groupby(sorted(cells, key=_place), key=_place):
        members = list(group)
        for record in members:
            shown = tables.row(record, tables.reference_rate(members, base, record.dtype))
            shown["batch x context"] = f"{place[0]} x {place[1]}" if record is members[0] else ""
            rows.append([shown.get(name, "") for name in tables.COLUMNS])
    header = [f"x {base}" if name == "ratio" else name for name in tables.COLUMNS]
    legend = f"{tables.title(cells)}. {tables.LEGEND.format(base=base)}"
    return "\n".join([_grid(header, rows, 4), "", legend, *_failures(cells)])


def _failures(cells: Sequence[Decode]) -> list[str]:
    """A line for each reason why there is no figure, with the places where it struck."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if not cell.passed:
            where = f"{cell.batch} x {cell.context}"
            reasons.setdefault(f"{cell.contender} {cell.dtype}, {cell.verdict}: {cell.detail}", []).append(where)
    return ["", *(f"- {reason} ({', '.join(places)})" for reason, places in reasons.items())] if reasons else []


def _summary(cells: Sequence[Decode]) -> str:
    """Decode tokens/s: contenders down, batch x context across; in brackets, times the baseline."""
    base = tables.baseline(cells)
    places = sorted({_place(cell) for cell in cells})
    at = {place: [cell for cell in cells if _place(cell) == place] for place in places}
    rows = []
    for name, dtype in dict.fromkeys((cell.contender, cell.dtype) for cell in cells):
        row = [name, dtype]
        for place in places:
            own = [cell for cell in at[place] if (cell.contender, cell.dtype) == (name, dtype)]
            row.append(_rate(own[0], tables.reference_rate(at[place], base, dtype)) if own else "")
        rows.append(row)
    header = ["contender", "dtype", *(f"{batch} x {context}" for batch, context in places)]
    note = f"{tables.title(cells)}: decode tokens/s at batch x context, and times {base} in the same dtype."
    return "\n".join([_grid(header, rows, 2), "", note])


def _rate(record: Decode, rate: float | None) -> str:
    if not record.passed or record.decode_tokens_per_s is None:
        return tables.MARKS[record.verdict]
    marks = f"{tables.noise(record.tpot_spread)}{'≠' if record.verdict == 'quantised' else ''}"
    ratio = f" ({record.decode_tokens_per_s / rate:.2f})" if rate else ""
    return f"{tables.number(record.decode_tokens_per_s)}{marks}{ratio}"


def _ops(cells: Sequence[Op]) -> str:
    header = [*ops.COLUMNS[:3], "dtype", *ops.COLUMNS[3:]]
    rows = [[*(shown := ops.row(cell))[:3], cell.dtype, *shown[3:]] for cell in cells]
    return _grid(header, rows, 4)


def _host(cells: Sequence[Host]) -> str:
    return _grid(host.COLUMNS, [host.row(cell) for cell in cells], 0)


def _serve(cells: Sequence[Serve]) -> str:
    grid = _grid(serve_table.COLUMNS, [serve_table.row(cell) for cell in cells], 2)
    reasons = [f"- {serve_table.load_of(cell)}, {cell.verdict}: {cell.detail}" for cell in cells if not cell.passed]
    legend = f"{serve_table.title(cells)}. {serve_table.legend(cells)}"
    return "\n".join([grid, "", legend, *([""] if reasons else []), *reasons])


def _engine(cells: Sequence[Scene]) -> str:
    grid = _grid(engine_table.COLUMNS, engine_table.rows(cells), 4)
    return f"{grid}\n\n{engine_table.title(cells)}. {engine_table.LEGEND}"


BODIES: dict[type, Callable[[Sequence[Any]], str]] = {
    Decode: _decode, Op: _ops, Host: _host, Serve: _serve, Scene: _engine,
}  # fmt: skip


def _place(record: Decode) -> tuple[int, int]:
    return record.batch, record.context
