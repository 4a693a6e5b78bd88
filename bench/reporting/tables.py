"""What the terminal shows: a line as each cell ends, then a table."""

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo.bench.measuring.timing import NOISY
from octavo.bench.reporting.schema import Decode, Run

MARKS = {"same": "=", "rounding": "≈", "quantised": "≠", "wrong": "✗", "failed": "✗", "unsupported": "-"}
LEGEND = (
    "check: = the reference's greedy tokens; ≈ tokens that differ by rounding only; ≠ quantised, so other tokens; "
    "✗ wrong or failed; - not supported. ~ the middle four fifths spread over more than a quarter of the median. "
    "of matmul: FLOPs of the prefill, of the measured rate. ratio: decode tok/s over that of {base} in the same dtype. "
    "of bandw.: bytes of weights and cache that a step must read, of the measured bandwidth."
)
COLUMNS = (
    "batch x context", "contender", "dtype", "check", "prefill tok/s", "of matmul", "TTFT ms", "TPOT ms", "p90", "p99",
    "decode tok/s", "ratio", "of bandw.", "memory MB",
)  # fmt: skip
LEFT = ("batch x context", "contender", "dtype")
FURTHER = ("of matmul", "p90", "p99", "memory MB")  # left out where the terminal is narrow
ROOM = 126  # columns that all of them take


def speed_line(record: Decode) -> Text:
    """One cell in one line; no figure unless its check passed."""
    where = f"{record.contender:<22} {record.dtype:<9} batch {record.batch:<4} context {record.context:<6}"
    if record.tpot_median_s is None or not record.passed:
        style = "dim" if record.verdict == "unsupported" else "red"
        return Text(f"{MARKS[record.verdict]} {where} {record.verdict}: {record.detail}", style=style)
    return Text.assemble(
        f"{MARKS[record.verdict]} {where}",
        (f"{record.decode_tokens_per_s:9.1f} tokens/s", "bold"),
        f"  step {milliseconds(record.tpot_median_s)} ms{noise(record.tpot_spread)}",
        f"  first token {milliseconds(record.ttft_median_s)} ms",
    )


def header(run: Run, console: Console) -> None:
    """The machine, and what it can do."""
    rates = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in run.matmul_flops_per_s.items())
    console.print(f"[bold]{run.machine}[/], {run.threads} threads; " + software(run), highlight=False)
    console.print(
        f"measured: copy {run.copy_bytes_per_s / 1e9:.3g} GB/s, read {run.read_bytes_per_s / 1e9:.3g} GB/s; {rates}",
        highlight=False,
    )
    if warning := busy(run):
        console.print(warning, style="yellow", highlight=False)


def software(run: Run) -> str:
    commit = f"commit {run.commit[:10]}{' with changes' if run.dirty else ''}" if run.commit else "no commit"
    return f"{', '.join(f'{name} {version}' for name, version in run.versions.items())}; {commit}"


def busy(run: Run) -> str:
    """A sentence where others were at work when the run began."""
    if run.load is None or run.load < 0.25 * run.num_cores:
        return ""
    return f"the machine was busy when the run began ({run.load:g} of {run.num_cores} cores): times are too long"


def decode_table(records: Sequence[Decode], width: int) -> Table:
    """Grouped by batch and context, contenders in the order they ran; some columns only where there is room."""
    rows = latest(records)
    base = baseline(rows)
    table = Table(
        title=title(rows), caption=LEGEND.format(base=base), caption_justify="left", header_style="bold",
        title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    shown = [name for name in COLUMNS if width >= ROOM or name not in FURTHER]
    for name in shown:
        heading = "\n".join(name.rsplit(" ", 1))
        table.add_column(heading, justify="left" if name in LEFT else "right", no_wrap=True)
    for place, group in groupby(sorted(rows, key=_place), key=_place):
        members = list(group)
        for record in members:
            cells = row(record, reference_rate(members, base, record.dtype))
            if record is members[0]:
                cells["batch x context"] = f"{place[0]} x {place[1]}"
            table.add_row(*(cells.get(name, "-" if name not in LEFT else "") for name in shown))
        table.add_section()
    return table


def row(record: Decode, rate: float | None) -> dict[str, str]:
    """A record's cells under `COLUMNS`; rate is the baseline's, in tokens/s. No figure unless the check passed."""
    start = {"contender": record.contender, "dtype": record.dtype, "check": MARKS[record.verdict]}
    if record.decode_tokens_per_s is None or not record.passed:
        return start
    return {
        **start,
        "prefill tok/s": number(record.prefill_tokens_per_s),
        "of matmul": percent(record.prefill_compute_share),
        "TTFT ms": milliseconds(record.ttft_median_s) + noise(record.ttft_spread),
        "TPOT ms": milliseconds(record.tpot_median_s) + noise(record.tpot_spread),
        "p90": milliseconds(record.tpot_p90_s),
        "p99": milliseconds(record.tpot_p99_s),
        "decode tok/s": number(record.decode_tokens_per_s),
        "ratio": f"{record.decode_tokens_per_s / rate:.2f}" if rate else "-",
        "of bandw.": percent(record.bandwidth_share),
        "memory MB": number(record.peak_memory_bytes and record.peak_memory_bytes / 1e6),
    }


def title(records: Sequence[Decode]) -> str:
    names = {f"{record.model} (random weights)" if record.dummy else record.model for record in records}
    return ", ".join(sorted(names))


def baseline(records: Sequence[Decode]) -> str:
    """Whom the ratios compare with: transformers where it ran, else the reference."""
    ran = {record.contender for record in records if record.passed}
    return "transformers" if "transformers" in ran else "octavo:reference"


def reference_rate(members: Sequence[Decode], base: str, dtype: str) -> float | None:
    """The baseline's tokens/s at the same batch and context, in the same dtype."""
    rates = [m.decode_tokens_per_s for m in members if (m.contender, m.dtype) == (base, dtype) and m.passed]
    return rates[0] if rates else None


def latest(records: Sequence[Decode]) -> list[Decode]:
    """The last line of each cell: a resumed run measures again what failed."""
    return list({record.key: record for record in records}.values())


def _place(record: Decode) -> tuple[int, int]:
    return record.batch, record.context


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def noise(spread: float | None) -> str:
    return "~" if spread is not None and spread > NOISY else ""
