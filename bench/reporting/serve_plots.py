"""The picture of a serve run: latency over throughput as the load grows, and goodput over the load."""

from collections.abc import Sequence
from typing import Any

from octavo.bench.reporting.axes import MARKERS, fit, legend, logarithmic, panels
from octavo.bench.reporting.schema import Serve

KINDS = ("open", "closed")
SHARES = {"median": "-", "p90": ":"}


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
