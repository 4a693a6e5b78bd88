"""The README's table is the one of today's conditions and formats, and says nothing that would be a failure."""

from conditions import CONDITIONS
from table import FORMATS, NUMBER, README, read, written


def test_the_readme_has_every_condition_and_format_and_no_request_that_differs() -> None:
    cells = read(README.read_text())
    assert list(cells) == list(CONDITIONS)
    assert all(list(row) == list(FORMATS) for row in cells.values())
    measured = [cell for row in cells.values() for cell in row.values() if cell != "-"]
    assert set(measured) == {f"{NUMBER} of {NUMBER}"}


def test_a_table_that_is_written_is_read_again() -> None:
    cells = {condition: dict.fromkeys(FORMATS, f"{number} of 64") for number, condition in enumerate(CONDITIONS)}
    assert read(written(README.read_text(), cells)) == cells
