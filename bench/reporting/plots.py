"""Draws a run as PNG and SVG.

Of decode: throughput, latency, share of the roofline, one against the other. Of serve: latency and goodput under load.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
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
DECADES = 15  # an axis is logarithmic where the largest value is more than this many times the smallest
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
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
            # Without a date inside, the same results make the same file.
            undated = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(folder / f"{results.path.stem}-{name}.{kind}", dpi=130, metadata=undated)
        drawn.append(folder / f"{results.path.stem}-{name}.png")
    return drawn


_STEP, _SPEED = "ms per output token", "decode tokens/s"
QUANTITIES: dict[str, Callable[[Decode], Any]] = {  # what an axis shows, by its label
    "batch": lambda cell: cell.batch,
    "context": lambda cell: cell.context,
    _STEP: lambda cell: 1e3 * cell.tpot_median_s,
    _SPEED: lambda cell: cell.decode_tokens_per_s,
}


def _curves(cells: Sequence[Decode], panel: str, xlabel: str, ylabel: str, notes: bool = False) -> Figure:
    """A panel for each value of one field, in it a line for each contender; notes: points bear their batch size."""
    x, y = QUANTITIES[xlabel], QUANTITIES[ylabel]
    places = sorted({getattr(cell, panel) for cell in cells})
    figure, axes = panels(len(places))
    for axis, at in zip(axes, places, strict=True):
        here = sorted((c for c in cells if getattr(c, panel) == at), key=lambda c: (c.batch, c.context))
        for name, style in _styles(cells).items():
            own = [cell for cell in here if _label(cell) == name]
            line(axis, [(x(c), y(c)) for c in own], [c.batch for c in own] if notes else (), label=name, **style)
        axis.set(title=f"{panel} {at}{', points are batch sizes' if notes else ''}", xlabel=xlabel)
        fit(axis.yaxis, [y(cell) for cell in here])
        if notes:
            fit(axis.xaxis, [x(cell) for cell in here])
        else:
            logarithmic(axis, sorted({x(cell) for cell in cells}))
    axes[0].set_ylabel(ylabel)
    return legend(figure, axes[0])


def _roofline(cells: Sequence[Decode]) -> Figure:
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
        for (batch, context), share in at.items():
            place, colour = (contexts.index(context), batches.index(batch)), "white" if share < 0.6 else "black"
            axis.text(*place, f"{100 * share:.0f} %", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(contexts)), [str(context) for context in contexts])
        axis.set_yticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(title=name, xlabel="context")
    axes[0].set_ylabel("batch")
    return figure


def _styles(cells: Sequence[Decode]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each contender; ours in full lines, peers' dashed."""
    names = dict.fromkeys(_label(cell) for cell in cells)
    lines = {True: {"linestyle": "-", "linewidth": 2}, False: {"linestyle": "--", "linewidth": 1.2}}
    return {name: _colour(i) | lines[OWN in name] for i, name in enumerate(names)}


def _label(cell: Decode) -> str:
    return cell.contender if cell.contender.endswith(cell.dtype) else f"{cell.contender} {cell.dtype}"


def load_curve(records: Sequence[Serve]) -> Figure:
    """First token and gap over tokens/s, medians and p90; of open loops also the requests completed and in bounds."""
    loops = {kind: [record for record in records if record.load == kind] for kind in ("open", "closed")}
    for kind in loops:
        loops[kind].sort(key=lambda record: record.level)
    figure, axes = panels(3 if loops["open"] else 2)
    _over_throughput(axes[0], loops, "ttft", "time to first token, ms")
    _over_throughput(axes[1], loops, "itl", "time between tokens, ms")
    if loops["open"]:
        _goodput(axes[2], loops["open"])
    return legend(figure, *axes)


def _over_throughput(axis: Any, loops: dict[str, list[Serve]], what: str, label: str) -> None:
    shown = []
    for (i, (kind, own)), (share, style) in product(enumerate(loops.items()), SHARES.items()):
        points = [(r.output_tokens_per_s, 1e3 * getattr(r, f"{what}_{share}_s")) for r in own]
        notes = [f"{record.level:g}" for record in own] if share == "median" else ()
        shown += points
        if own:
            line(axis, points, notes, label=f"{kind} loop, {share}", linestyle=style, **_colour(i))
    fit(axis.xaxis, [x for x, _ in shown])
    fit(axis.yaxis, [y for _, y in shown])
    axis.set(xlabel="output tokens/s", ylabel=label)
    axis.set_title("points: requests/s (open), callers (closed)", fontsize=10)


def _goodput(axis: Any, records: Sequence[Serve]) -> None:
    levels = [record.level for record in records]
    done, good = ([getattr(record, name) or 0 for record in records] for name in ("requests_per_s", "goodput_per_s"))
    axis.plot(levels, levels, label="requests that came", color="grey", linewidth=1, linestyle="--")
    line(axis, [*zip(levels, done, strict=True)], label="requests completed", **_colour(2))
    line(axis, [*zip(levels, good, strict=True)], label="requests completed in bounds", **_colour(3))
    logarithmic(axis, levels)
    fit(axis.yaxis, [*levels, *done, *good])
    ttft, gap = (1e3 * (bound or 0) for bound in (records[0].ttft_bound_s, records[0].tpot_bound_s))
    axis.set(xlabel="requests/s that came", ylabel="requests/s")
    axis.set_title(f"bounds: first token {ttft:,g} ms, mean gap {gap:,g} ms", fontsize=10)


def _colour(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "marker": MARKERS[index % len(MARKERS)], "markersize": 5}


def line(axis: Any, points: Sequence[tuple[float, float]], notes: Sequence[Any] = (), **style: Any) -> None:
    """A line through points, each with its note beside it."""
    axis.plot(*zip(*points, strict=True), **style)
    for note, point in zip(notes, points, strict=False):
        axis.annotate(str(note), point, xytext=(4, 4), textcoords="offset points", fontsize=7)


def panels(number: int) -> tuple[Figure, Any]:
    """Panels side by side, at most three in a row, those left over hidden."""
    columns = 2 if number == 4 else min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[number:]:
        axis.set_visible(False)
    return figure, axes.flat[:number]


def legend(figure: Figure, *axes: Any) -> Figure:
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
    """An axis that begins at zero; logarithmic where small values would be invisible."""
    plane, name = axis.axes, axis.axis_name
    if max(values) > DECADES * min(values) > 0:
        getattr(plane, f"set_{name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    else:
        getattr(plane, f"set_{name}lim")(0, 1.1 * max(values))
    axis.set_major_formatter(PLAIN)
    plane.grid(alpha=0.3)


PICTURES: dict[Any, dict[str, tuple[str, Callable[[Sequence[Any]], Figure]]]] = {
    Decode: {
        "throughput": ("decode throughput", partial(_curves, panel="context", xlabel="batch", ylabel=_SPEED)),
        "latency": ("time per output token", partial(_curves, panel="batch", xlabel="context", ylabel=_STEP)),
        "roofline": ("share of the measured memory bandwidth", _roofline),
        "tradeoff": (
            "throughput over latency",
            partial(_curves, panel="context", xlabel=_STEP, ylabel=_SPEED, notes=True),
        ),
    },
    Serve: {"load": ("latency and goodput under load", load_curve)},
}
