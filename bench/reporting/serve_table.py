"""From the times of served requests to figures, and to the table that a person reads."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from octavo.bench.measuring.load_generator import Served
from octavo.bench.measuring.loads import Load
from octavo.bench.measuring.timing import median, percentile
from octavo.bench.reporting.schema import Serve
from octavo.bench.reporting.tables import MARKS, milliseconds, number

COLUMNS = (
    "load", "check", "requests/s", "tokens/s", "TTFT ms", "TTFT p90", "TTFT p99", "ITL ms", "ITL p90", "ITL p99",
    "good", "goodput/s",
)  # fmt: skip
LEGEND = (
    "check: = the requests that are also run alone said the same under load; ≈ they differ by rounding only; ✗ wrong. "
    "ITL: between one token and the next. good: requests with TTFT up to {ttft} ms and a mean ITL up to {tpot} ms."
)


def figures(served: Sequence[Served], ttft_bound_s: float, tpot_bound_s: float) -> dict[str, Any]:
    """The fields of a `Serve` line that follow from the times; none where nothing was served."""
    done = [request for request in served if request.times]
    if not done:
        return {"num_refused": len(served)}
    duration = max(request.times[-1] for request in done) - min(request.due for request in served)
    first, gaps = [request.ttft for request in done], [gap for request in done for gap in request.gaps]
    good = sum(request.ttft <= ttft_bound_s and _mean(request.gaps) <= tpot_bound_s for request in done)
    output_tokens = sum(len(request.tokens) for request in done)
    return {
        "num_refused": len(served) - len(done),
        "prompt_tokens": sum(request.prompt_tokens for request in done),
        "output_tokens": output_tokens,
        "duration_s": duration,
        "ttft_s": [round(value, 6) for value in first],
        "itl_s": [[round(gap, 6) for gap in request.gaps] for request in done],
        "late_s": max(request.sent - request.due for request in served),
        "requests_per_s": len(done) / duration,
        "output_tokens_per_s": output_tokens / duration,
        "ttft_median_s": median(first),
        "ttft_p90_s": percentile(first, 0.90),
        "ttft_p99_s": percentile(first, 0.99),
        "itl_median_s": median(gaps),
        "itl_p90_s": percentile(gaps, 0.90),
        "itl_p99_s": percentile(gaps, 0.99),
        "ttft_bound_s": ttft_bound_s,
        "tpot_bound_s": tpot_bound_s,
        "num_good": good,
        "goodput_per_s": good / duration,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def load_of(record: Serve) -> str:
    return f"{record.load}: {Load(record.load, record.level)}"


def line(record: Serve) -> Text:
    """A load in one line; no figure unless its check passed."""
    start = f"{MARKS[record.verdict]} {load_of(record):<22}"
    if record.output_tokens_per_s is None:
        return Text(f"{start} {record.verdict}: {record.detail}", style="red")
    return Text.assemble(
        start,
        (f"{record.output_tokens_per_s:9.1f} tokens/s", "bold"),
        f"  first token {milliseconds(record.ttft_median_s)} ms  between tokens {milliseconds(record.itl_median_s)} ms",
        f"  {record.num_good} of {record.num_requests} in bounds",
    )


def row(record: Serve) -> list[str]:
    """A record's cells under `COLUMNS`."""
    start = [load_of(record), MARKS[record.verdict]]
    if record.output_tokens_per_s is None:
        return [*start, *["-"] * (len(COLUMNS) - 2)]
    times = (record.ttft_median_s, record.ttft_p90_s, record.ttft_p99_s)
    gaps = (record.itl_median_s, record.itl_p90_s, record.itl_p99_s)
    rates = (record.requests_per_s, record.output_tokens_per_s)
    good = f"{record.num_good} of {record.num_requests}"
    return [*start, *map(number, rates), *map(milliseconds, (*times, *gaps)), good, number(record.goodput_per_s)]


def title(records: Sequence[Serve]) -> str:
    one = records[0]
    weights = " (random weights)" if one.dummy else ""
    return f"{one.model}{weights}, {one.backend} {one.dtype}: {one.num_requests} requests, lengths {one.mix}"


def legend(records: Sequence[Serve]) -> str:
    bounds = [(record.ttft_bound_s, record.tpot_bound_s) for record in records if record.num_good is not None]
    ttft, tpot = bounds[0] if bounds else (None, None)
    return LEGEND.format(ttft=milliseconds(ttft), tpot=milliseconds(tpot))


def table(records: Sequence[Serve]) -> Table:
    """A row a load, the last line of each."""
    shown = list({record.key: record for record in records}.values())
    made = Table(
        title=title(shown) if shown else None, caption=legend(shown), caption_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for name in COLUMNS:
        made.add_column("\n".join(name.split(" ", 1)), justify="left" if name == "load" else "right", no_wrap=True)
    for record in shown:
        made.add_row(*row(record))
    return made
