"""Figures beside busy neighbours: the programs run meanwhile and end with the block, and the results say so."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from octavo.bench.measuring import machine
from octavo.bench.measuring.neighbours import busy_neighbours
from octavo.bench.reporting import records, tables

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "cpu" / "decode.jsonl"


def test_neighbours_are_busy_until_the_block_ends() -> None:
    def children() -> set[str]:
        return set(Path("/proc/self/task").glob("*/children").__next__().read_text().split())

    before = children()
    with busy_neighbours(2):
        assert len(children() - before) == 2
        busy = machine.busy_cores()
        assert busy is None or busy > 0.3
    assert children() == before


def test_neighbours_end_with_a_failing_block() -> None:
    with pytest.raises(KeyError), busy_neighbours(1):
        raise KeyError


def test_files_from_before_there_were_neighbours_are_read(tmp_path: Path) -> None:
    first = json.loads(RESULTS.read_text().splitlines()[0])
    first.pop("neighbours", None)
    (tmp_path / "decode.jsonl").write_text(json.dumps(first) + "\n")
    run = records.read(tmp_path).run
    assert run.neighbours == 0
    assert not any("Beside" in line for line in tables.header(run))
    (tmp_path / "decode.jsonl").write_text(json.dumps({**first, "neighbours": 2}) + "\n")
    shared = records.read(tmp_path).run
    assert "Beside 2 other programs that kept a core busy each." in tables.header(shared)
    assert asdict(shared) == {**asdict(run), "neighbours": 2}
