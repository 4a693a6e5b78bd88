"""Pictures of a run, PNG and SVG. Of decode: throughput, latency, share of the roofline, one against the other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from octavo.bench.peers.base import OWN
from octavo.bench.reporting.axes import MARKERS, fit, legend, logarithmic, panels
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Serve
from octavo.bench.reporting.serve_plots import load_curve

FORMATS = ("png", "svg")


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes the pictures that the run has points for, two files each; returns the PNGs."""
    cells = list({cell.key: cell for cell in results.cells if cell.passed}.values())
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
