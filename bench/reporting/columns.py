"""What a table is made of: columns, each with the text of a record in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.bench.reporting.schema import Measured

MARKS = {"same": "=", "rounding": "≈", "quantised": "≠", "wrong": "✗", "failed": "✗", "unsupported": "-"}


@dataclass(frozen=True)
class Column:
    """A heading, and a record's text below it. A figure is shown only where the record's check passed."""

    name: str
    text: Callable[[Any], str]
    is_figure: bool = True
    is_minor: bool = False  # left out of a narrow terminal
    is_place: bool = False  # one of the first columns, left blank where the row above says the same

    def cell(self, record: Measured) -> str:
        return self.text(record) if record.passed or not self.is_figure else "-"


@dataclass(frozen=True)
class Table:
    """Records of one kind under their columns."""

    title: str
    legend: str
    columns: Sequence[Column]
    records: Sequence[Any]

    @property
    def caption(self) -> str:
        return f"{self.title}. {self.legend}"

    def rows(self) -> list[list[str]]:
        return [[column.cell(record) for column in self.columns] for record in self.records]

    def sparse_rows(self) -> list[list[str]]:
        """The rows, without the places that are those of the row above."""
        places = [column.is_place for column in self.columns].index(False)
        shown, above = [], [""] * places
        for row in self.rows():
            same = next((i for i in range(places) if row[i] != above[i]), places)
            shown.append([""] * same + row[same:])
            above = row
        return shown


words = partial(Column, is_figure=False)
place = partial(Column, is_figure=False, is_place=True)
CHECK = words("check", lambda record: MARKS[record.verdict])
