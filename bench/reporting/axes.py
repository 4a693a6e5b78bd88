"""What the pictures share: panels, axes that fit the values, a legend outside of them."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

PANEL = (4.6, 3.6)  # inches
MARKERS = "os^Dv<>P*X"
DECADES = 15  # a largest over a smallest value beyond which an axis is logarithmic
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")


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
