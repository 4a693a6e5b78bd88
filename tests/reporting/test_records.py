"""Results as JSON lines: what was written is read back, what is not whole is refused by file and line."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from octavo.bench.reporting import records
from octavo.bench.reporting.schema import KIND_OF, KINDS, Decode, Host, Measured, Op, Scenario, Serve, derived
from octavo.bench.run import ResultLog

from bench_tiny import RUN, record, write

OP = Op("linear", "1 x 2", "cpu", "float32", "same", "", [0.1, 0.2], 10, 20, 0.5, None)
HOST = Host(64, 128, None, [1e-4], 1500)
SERVE = Serve("m", False, "cpu", "float32", "alpaca", "open", 2.0, 8, 0, "same", "", ttft_s=[0.1], itl_s=[[0.01, 0.02]])
SCENE = Scenario("m", False, "cpu", "float32", "prefix", "caching on", 8, 90, 9, "same", "", 30, [1.0])


@pytest.mark.parametrize(
    "cell", [record(), Decode("m", True, "p", "", "f", 1, 2, 3, 4, "failed", "out of memory"), OP, HOST, SERVE, SCENE],
    ids=["decode", "failed", "op", "host", "serve", "engine"],
)  # fmt: skip
def test_what_was_written_is_read_back(cell, tmp_path):
    command = next(name for name, kind in KIND_OF.items() if KINDS[kind] is type(cell))
    run = replace(RUN, command=command)
    path = write(tmp_path / "results.jsonl", run, cell)
    for place in (path, tmp_path):
        results = records.read(place)
        assert (results.run, results.cells, results.path) == (run, [cell], path)


def test_lines_of_another_command_are_refused(tmp_path):
    for command, cells in {"decode": [record(), OP], "sleep": [record()]}.items():
        path = write(tmp_path / f"{command}.jsonl", replace(RUN, command=command), *cells)
        with pytest.raises(ValueError, match=rf"line {len(cells) + 1} is none of a run of {command}"):
            records.read(path)


def spoiled(line: str, **changes: object) -> str:
    table = {**json.loads(line), **changes}
    return json.dumps({name: value for name, value in table.items() if value != "gone"})


SPOILS = {
    "another schema": ("is of schema 'octavo.bench/9', this version reads", {"schema": "octavo.bench/9"}),
    "no schema": ("is of schema None", {"schema": "gone"}),
    "unknown kind": (
        "kind must be one of run, decode, op, host, serve, engine, perplexity, memory, not 'sleep'",
        {"kind": "sleep"},
    ),
    "a kind that is a list": ("kind must be one of", {"kind": [1]}),
    "control characters": (r"is of schema '\x1b[31m", {"schema": "\x1b[31m" * 999}),
    "missing field": ("missing field batch", {"batch": "gone"}),
    "unknown field": ("unknown field colour", {"colour": 1}),
    "wrong type": ("batch has the wrong type, '8'", {"batch": "8"}),
    "bool for a number": ("batch has the wrong type, True", {"batch": True}),
    "unknown verdict": ("verdict must be one of same, rounding,", {"verdict": "fine"}),
    "not a number": ("is no JSON: NaN is no number", {"batch": float("nan")}),
    "wrong type within": ("ttft_s has the wrong type", {"ttft_s": [1.0, "2"]}),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_line_that_does_not_fit_the_schema_is_refused(spoil, tmp_path):
    message, changes = SPOILS[spoil]
    path = write(tmp_path / "a.jsonl", RUN, record())
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{spoiled(second, **changes)}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2") as caught:
        records.read(path)
    assert message in str(caught.value)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", RUN, record())
    whole = path.read_bytes()
    ends = {len(whole), whole.index(b"\n") + 1}  # where a line ends, the file is whole
    for size in {1, 10, len(whole) // 2, len(whole) - 2, len(whole) - 1, *(end - 1 for end in ends)}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut short"):
            records.read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        records.read(path)


def test_one_run_a_file_and_it_comes_first(tmp_path):
    for name, lines in {"two": [RUN, RUN], "none": [record()], "late": [record(), RUN]}.items():
        path = tmp_path / f"{name}.jsonl"
        for line in lines:
            records.append(path, line)
        with pytest.raises(ValueError, match="one line of kind run, the first"):
            records.read(path)


def test_places_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of results"):
        records.read(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="holds 0 files of results"):
        records.read(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        records.read(tmp_path)


def test_numbers_that_json_does_not_have_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        records.append(tmp_path / "a.jsonl", replace(OP, bandwidth_share=float("nan")))


def test_on_resume_what_failed_is_not_done(tmp_path):
    log = ResultLog(RUN, tmp_path / "a.jsonl", Console(), [record(verdict="failed"), record(batch=2)])
    assert not log.has(record().key)
    assert log.has(record(batch=2).key)
    log.keep(record())
    assert log.has(record().key)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_explained(kind):
    page = (Path(records.__file__).parent.parent / "results" / "README.md").read_text()
    section = page.split(f"## {kind}\n")[1].split("\n## ")[0]
    explained = {name for line in section.splitlines() for name in line.split("|")[1:2] for name in name.split()}
    stored = {field.name for field in fields(KINDS[kind])}
    figures = derived(KINDS[kind]) - {"place"} if issubclass(KINDS[kind], Measured) else set()
    assert {f"`{name}`" for name in stored | figures} == {name for name in explained if name[0] == "`"}


def test_lists_without_samples_have_no_figure():
    assert record(step_s=[[]]).tpot_median_s is None
    assert record(step_s=[]).decode_tokens_per_s is None


def test_stored_figures_that_follow_from_the_samples_are_left_aside(tmp_path):
    path = write(tmp_path / "a.jsonl", RUN, record())
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{spoiled(second, tpot_median_s=99.0)}\n")
    assert records.read(path).cells == [record()]
    assert records.read(path).cells[0].tpot_median_s == pytest.approx(0.01)


def test_figures_follow_from_the_samples_as_they_were_stored():
    """Files of an earlier version hold their figures too, from times before they were rounded."""
    compared = 0
    for path in (Path(records.__file__).parent.parent / "results").rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for cell, line in zip(records.read(path).cells, lines, strict=True):
            for name in derived(type(cell)) & line.keys():
                if cell.passed:
                    assert getattr(cell, name) == pytest.approx(line[name], rel=1e-4), (path, name)
                    compared += 1
    assert compared > 100


def test_committed_results_fit_the_schema():
    committed = sorted((Path(records.__file__).parent.parent / "results").rglob("*.jsonl"))
    for path in committed:
        results = records.read(path)
        assert results.cells, path
        assert results.run.commit, f"{path}: measured without a commit"
