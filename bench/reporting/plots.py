"""Draws a run as PNG and SVG.

Of decode: throughput, latency, share of the roofline, one against the other. Of serve: latency and goodput under load.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from octavo.bench.peers.base import OWN
from octavo.bench.reporting import records
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Serve

FORMATS = ("png", "svg")
PANEL = (4.6, 3.6)  # inches
MARKERS = "os^Dv<>P*X"
DECADES = 15  # a largest over a smallest value beyond which an axis is logarithmic
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
KINDS = ("open", "closed")
SHARES = {"median": "-", "p90": ":"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes the pictures that the run has points for, two files each; returns the PNGs."""
    cells = records.latest([cell for cell in results.cells if cell.passed])
    drawn = []
    for name, (what, picture) in PICTURES.get(type(cells[0]) if cells else None, {}).items():
        figure = picture(cells)
        weights = ", random weights" if cells[0].dummy else ""
        figure.suptitle(f"{cells[0].model}{weights}: {what}\n{results.run.machine}", fontsize=10)
        for kind in FORMATS:
            figure.savefig(folder / f"{results.path.stem}-{name}.{kind}", dpi=130, metadata=_undated(kind))
        drawn.append(folder / f"{results.path.stem}-{name}.png")
    return drawn


def _throughput(cells: Sequence[Decode]) -> Any:
    return _lines(cells, "context", "batch", lambda cell: cell.decode_tokens_per_s, "decode tokens/s")


def _latency(cells: Sequence[Decode]) -> Any:
    return _lines(cells, "batch", "context", lambda cell: 1e3 * (cell.tpot_median_s or 0), "ms per output token")


def _lines(cells: Sequence[Decode], panel: str, across: str, value: Callable[[Decode], Any], label: str) -> Any:
    """A panel for each value of one axis, a line for each contender over the other."""
    places = sorted({getattr(cell, panel) for cell in cells})
    figure, axes = panels(len(places))
    for axis, at in zip(axes, places, strict=True):
        for name, style in _styles(cells).items():
            own = [cell for cell in cells if _label(cell) == name and getattr(cell, panel) == at]
            own.sort(key=lambda cell: getattr(cell, across))
            axis.plot([getattr(cell, across) for cell in own], [value(cell) for cell in own], label=name, **style)
        logarithmic(axis, sorted({getattr(cell, across) for cell in cells}))
        axis.set(title=f"{panel} {at}", xlabel=across)
        fit(axis.yaxis, [value(cell) for cell in cells if getattr(cell, panel) == at])
    axes[0].set_ylabel(label)
    return legend(figure, axes[0])


def _tradeoff(cells: Sequence[Decode]) -> Any:
    """Throughput over latency: a line a contender, its points the batch sizes."""
    contexts = sorted({cell.context for cell in cells})
    figure, axes = panels(len(contexts))
    for axis, at in zip(axes, contexts, strict=True):
        for name, style in _styles(cells).items():
            own = sorted((c for c in cells if _label(c) == name and c.context == at), key=lambda c: c.batch)
            points = [(1e3 * (cell.tpot_median_s or 0), cell.decode_tokens_per_s or 0) for cell in own]
            axis.plot(*([p[i] for p in points] for i in (0, 1)), label=name, **style)
            for cell, point in zip(own, points, strict=True):
                axis.annotate(str(cell.batch), point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(title=f"context {at}, points are batch sizes", xlabel="ms per output token")
        here = [cell for cell in cells if cell.context == at]
        fit(axis.xaxis, [1e3 * (cell.tpot_median_s or 0) for cell in here])
        fit(axis.yaxis, [cell.decode_tokens_per_s or 0 for cell in here])
        axis.margins(0.1)
    axes[0].set_ylabel("decode tokens/s")
    return legend(figure, axes[0])


def _roofline(cells: Sequence[Decode]) -> Any:
    """A map for each contender: the share of the measured bandwidth that a step's unavoidable bytes make."""
    known = [cell for cell in cells if cell.bandwidth_share is not None]
    names = list(dict.fromkeys(_label(cell) for cell in known))
    batches, contexts = sorted({c.batch for c in known}), sorted({c.context for c in known})
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        at = {(cell.batch, cell.context): cell.bandwidth_share or 0.0 for cell in known if _label(cell) == name}
        grid = [[at.get((batch, context), float("nan")) for context in contexts] for batch in batches]
        axis.set_facecolor("lightgrey")  # where nothing was measured
        axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        for y, row in enumerate(grid):
            for x, share in enumerate(row):
                if share == share:
                    colour = "white" if share < 0.6 else "black"
                    axis.text(x, y, f"{100 * share:.0f} %", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(contexts)), [str(context) for context in contexts])
        axis.set_yticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(title=name, xlabel="context")
    axes[0].set_ylabel("batch")
    return figure


def _styles(cells: Sequence[Decode]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each contender; ours in full lines, peers' dashed."""
    names = list(dict.fromkeys(_label(cell) for cell in cells))
    return {
        name: {
            "color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if OWN in name else "--",
            "linewidth": 2 if OWN in name else 1.2, "markersize": 5,
        }
        for i, name in enumerate(names)
    }  # fmt: skip


def _label(cell: Decode) -> str:
    return cell.contender if cell.contender.endswith(cell.dtype) else f"{cell.contender} {cell.dtype}"


def load_curve(records: Sequence[Serve]) -> Any:
    """First token and gap over tokens/s, medians and p90; where the loop was open, what came and what was good."""
    rates = [record for record in records if record.load == "open"]
    figure, axes = panels(3 if rates else 2)
    _over_throughput(axes[0], records, "ttft", "time to first token, ms")
    _over_throughput(axes[1], records, "itl", "time between tokens, ms")
    if rates:
        _goodput(axes[2], sorted(rates, key=lambda record: record.level))
    return legend(figure, *axes)


def _over_throughput(axis: Any, records: Sequence[Serve], what: str, label: str) -> None:
    shown = []
    for i, kind in enumerate(KINDS):
        own = sorted((record for record in records if record.load == kind), key=lambda record: record.level)
        across = [record.output_tokens_per_s for record in own]
        for share, line in SHARES.items():
            up = [1e3 * getattr(record, f"{what}_{share}_s") for record in own]
            shown += up
            if own:
                style = {"color": f"C{i}", "marker": MARKERS[i], "linestyle": line, "markersize": 5}
                axis.plot(across, up, label=f"{kind} loop, {share}", **style)
        for record in own:
            at = record.output_tokens_per_s, 1e3 * getattr(record, f"{what}_median_s")
            axis.annotate(f"{record.level:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=7)
    fit(axis.yaxis, shown)
    fit(axis.xaxis, [record.output_tokens_per_s or 0 for record in records])
    axis.set(xlabel="output tokens/s", ylabel=label)
    axis.set_title("points: requests/s (open), callers (closed)", fontsize=10)


def _goodput(axis: Any, records: Sequence[Serve]) -> None:
    levels = [record.level for record in records]
    done, good = ([getattr(record, name) or 0 for record in records] for name in ("requests_per_s", "goodput_per_s"))
    axis.plot(levels, levels, label="requests that came", color="grey", linewidth=1, linestyle="--")
    axis.plot(levels, done, label="requests completed", color="C2", marker=MARKERS[2], markersize=5)
    axis.plot(levels, good, label="requests completed in bounds", color="C3", marker=MARKERS[3], markersize=5)
    logarithmic(axis, levels)
    fit(axis.yaxis, [*levels, *done, *good])
    ttft, gap = (1e3 * (bound or 0) for bound in (records[0].ttft_bound_s, records[0].tpot_bound_s))
    axis.set(xlabel="requests/s that came", ylabel="requests/s")
    axis.set_title(f"bounds: first token {ttft:,g} ms, mean gap {gap:,g} ms", fontsize=10)


def panels(number: int) -> tuple[Figure, Any]:
    """Panels side by side, at most three in a row, those left over hidden."""
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[number:]:
        axis.set_visible(False)
    return figure, axes.flat[:number]


def legend(figure: Any, *axes: Any) -> Any:
    """The legend of these axes, each label once, below all panels; returns the figure."""
    entries: dict[str, Any] = {}
    for axis in axes:
        entries |= dict(reversed(pair) for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(3, len(entries)), "frameon": False}
    figure.legend(entries.values(), entries.keys(), fontsize=8, **place)
    return figure


def logarithmic(axis: Any, ticks: Sequence[float]) -> None:
    """A base-2 axis that shows the measured values and nothing between."""
    if len(ticks) > 1:
        axis.set_xscale("log", base=2)
        margin = (ticks[-1] / ticks[0]) ** 0.05
        axis.set_xlim(ticks[0] / margin, ticks[-1] * margin)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(PLAIN)
    axis.xaxis.set_minor_locator(NullLocator())


def fit(axis: Any, values: Sequence[float]) -> None:
    """An axis that begins at zero, or one of decades where small values would lie on the ground."""
    plane, name = axis.axes, axis.axis_name
    if max(values) > DECADES * min(values) > 0:
        getattr(plane, f"set_{name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    else:
        getattr(plane, f"set_{name}lim")(0, 1.1 * max(values))
    axis.set_major_formatter(PLAIN)
    plane.grid(alpha=0.3)


def _undated(kind: str) -> dict[str, Any]:
    """No date inside, so that the same results make the same file."""
    return {"Date": None} if kind == "svg" else {"Software": None}


PICTURES: dict[Any, dict[str, tuple[str, Callable[[Sequence[Any]], Any]]]] = {
    Decode: {
        "throughput": ("decode throughput", _throughput),
        "latency": ("time per output token", _latency),
        "roofline": ("share of the measured memory bandwidth", _roofline),
        "tradeoff": ("throughput over latency", _tradeoff),
    },
    Serve: {"load": ("latency and goodput under load", load_curve)},
}
