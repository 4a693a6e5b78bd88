"""The scenes of `bench engine` side by side, as a person reads them."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from octavo.bench.reporting.schema import Scene
from octavo.bench.reporting.tables import MARKS, noise, number

COLUMNS = (
    "scene",
    "requests",
    "way",
    "check",
    "prompt tokens",
    "computed",
    "new tokens",
    "seconds",
    "tokens/s",
    "times faster",
)
LEFT = ("scene", "way")
LEGEND = (
    "check: = both ways said the same tokens; ≈ they differ by rounding only; ✗ wrong. computed: prompt tokens "
    "that were prefilled. seconds: until the last request ended, a median; ~ the repeats spread over a quarter."
)


def rows(records: Sequence[Scene]) -> list[list[str]]:
    """A row a line under `COLUMNS`, the last line of each way."""
    latest = list({record.key: record for record in records}.values())
    slow = {_place(record): record.median_s for record in reversed(latest)}  # the way named first is the slower one
    return [_row(record, slow[_place(record)]) for record in latest]


def _place(record: Scene) -> tuple[str, ...]:
    return record.model, record.backend, record.dtype, record.scene, str(record.num_requests)


def _row(record: Scene, slow: float | None) -> list[str]:
    start = [record.scene, str(record.num_requests), record.way, MARKS[record.verdict], f"{record.prompt_tokens:,}"]
    if record.median_s is None or record.computed_tokens is None:
        return [*start, *["-"] * 5]
    return [
        *start,
        f"{record.computed_tokens:,}",
        f"{record.new_tokens:,}",
        number(record.median_s) + noise(record.spread),
        number(record.tokens_per_s),
        f"{slow / record.median_s:.2f}" if slow else "-",
    ]


def title(records: Sequence[Scene]) -> str:
    one = records[0]
    return f"{one.model}{' (random weights)' if one.dummy else ''}, {one.backend} {one.dtype}"


def table(records: Sequence[Scene]) -> Table:
    made = Table(
        title=title(records) if records else None, caption=LEGEND, caption_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for name in COLUMNS:
        made.add_column("\n".join(name.split(" ", 1)), justify="left" if name in LEFT else "right", no_wrap=True)
    for cells in rows(records):
        made.add_row(*cells)
    return made
