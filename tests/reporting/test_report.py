"""Pages and README tables: made from files alone, CPU and GPU apart, and never adrift from the committed results."""

from dataclasses import replace
from pathlib import Path

import pytest

from octavo.bench import report
from octavo.bench.report import render
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Host, Op
from octavo.bench.reporting.tables import ROOM, terminal

from bench_tiny import RUN, bench, record, scene, served, write

ROOT = Path(report.__file__).parent.parent
GPU = replace(RUN, device="cuda", device_name="a GPU", driver="570", planned=1)
GRID = [
    record(name, batch=batch, context=context, step=step * batch**0.5)
    for name, step in (("octavo:cpu", 0.01), ("octavo:reference", 0.02), ("transformers", 0.04))
    for batch in (1, 8)
    for context in (16, 32)
]


def results(*cells, run=RUN):
    return Results(run, list(cells), Path("decode.jsonl"))


def test_the_full_table():
    text = render(results(*GRID))
    lines = text.splitlines()
    assert lines[0].startswith("| batch x context | contender | dtype | check | prefill tok/s |")
    assert len([line for line in lines if line.startswith("| ")]) == 2 + 12
    assert "| 1 x 16 | octavo:cpu | float32 | = | 160 | 20 % | 100 | 10 | 10 | 10 | 100 | 4.00 | 50 % | - |" in lines
    assert "|  | transformers | float32 | = | 40 | 20 % | 400 | 40 | 40 | 40 | 25 | 1.00 | 50 % | - |" in lines
    assert "x transformers" in lines[0]


def test_the_summary_is_contenders_by_places():
    lines = render(results(*GRID), "summary").splitlines()
    assert lines[0] == "| contender | dtype | 1 x 16 | 1 x 32 | 8 x 16 | 8 x 32 |"
    assert lines[2] == "| octavo:cpu | float32 | 100 (4.00) | 100 (4.00) | 283 (4.00) | 283 (4.00) |"


def test_what_has_no_figure_is_said_with_its_reason():
    wrong = record("octavo:bad", verdict="wrong", detail="2 of 9 tokens agree", step_s=[], ttft_s=[])
    cannot = [record("llama.cpp", batch=b, verdict="unsupported", detail="one at a time") for b in (8, 9)]
    text = render(results(record(), wrong, *cannot))
    assert "|  | octavo:bad | float32 | ✗ | - |" in text
    assert "- octavo:bad float32, wrong: 2 of 9 tokens agree (batch 1 context 16)" in text
    assert "- llama.cpp float32, unsupported: one at a time (batch 8 context 16, batch 9 context 16)" in text
    assert "| ✗ |" in render(results(record(), wrong), "summary")


def test_marks_of_noise_and_of_quantised_weights():
    text = render(
        results(
            record(step_s=[[0.01] * 8 + [0.0131] * 2], ttft_s=[0.1, 0.1, 0.11]),
            record("llama.cpp:q8_0", verdict="quantised"),
        )
    )
    assert "| 100 | 10~ |" in text
    assert "| llama.cpp:q8_0 | float32 | ≠ |" in text
    assert "(random weights)" in render(results(record(dummy=True)))


def test_formats_are_ratios_of_llama_cpps_same_ones():
    lines = [
        record(step=0.01), record("llama.cpp", step=0.02), record("octavo:cpu", step=0.01, dtype="int8"),
        record("llama.cpp:q8_0", step=0.03, dtype="q8_0", verdict="quantised"),
        record("octavo:cpu", step=0.01, dtype="q4_0"), record("octavo:cpu", step=0.01, batch=2),
    ]  # fmt: skip
    shown = [line.split(" | ") for line in render(results(*lines)).splitlines() if line.startswith("|")]
    first = shown[0].index("prefill x llama.cpp")
    assert shown[0][first + 1] == "decode x llama.cpp"
    ratios = [row[first : first + 2] for row in shown[2:]]
    assert ratios == [["2.00"] * 2, ["1.00"] * 2, ["3.00"] * 2, ["1.00"] * 2, ["-"] * 2, ["-"] * 2]
    assert "x llama.cpp" not in render(results(record()))


def test_provenance_stands_below_the_table():
    text = render(results(*GRID, run=replace(RUN, dirty=True, load=1.5, planned=20)))
    assert "a processor, 2 cores, 2 threads, bandwidth 30 GB/s, float32 matmul 0.1 TFLOP/s (measured)." in text
    assert "torch 2.13.0; commit 0123456789 with changes; 2026-01-01; seed 0." in text
    assert "`python -m octavo.bench decode`" in text
    assert "**The machine was busy when the run began (1.5 of 2 cores): times are too long.**" in text
    assert "**Cut off: 12 of 20 lines.**" in text


def test_a_resumed_run_shows_the_last_line_of_a_cell():
    text = render(results(record(verdict="failed", detail="crashed"), record()))
    assert "crashed" not in text
    assert "| 1 x 16 | octavo:cpu | float32 | = |" in text


def test_ops_and_host_have_tables_too():
    op = Op("linear", "8 x 9", "cpu", "float32", "same", "", [1e-4], 10**6, 10**7, 0.5, 0.25)
    assert "| linear | 8 x 9 | cpu | float32 | = | 100 | 100 | 100 | 10 | 50 % | 100 | 25 % |" in render(results(op))
    host = Host(64, 128, None, [1e-4] * 8 + [1.2e-4] * 2, 1500)
    assert "| 64 | 128 | 100 | 120 | 150 | 80 | 1,500 |" in render(results(host))


def test_a_place_is_left_out_only_below_itself():
    """One shape under two ops stands in both of their rows."""
    made = [
        Op(op, "8 x 9", backend, "float32", "same", "", [1e-4], 10**6, 0, 0.5, None)
        for op in ("rms_norm", "add_rms_norm")
        for backend in ("cpu", "reference")
    ]
    rows = [line.split(" | ")[:3] for line in render(results(*made)).splitlines()[2:6]]
    assert rows == [
        ["| rms_norm", "8 x 9", "cpu"], ["| ", "", "reference"],
        ["| add_rms_norm", "8 x 9", "cpu"], ["| ", "", "reference"],
    ]  # fmt: skip


def test_a_narrow_terminal_goes_without_the_minor_columns():
    wide, narrow = (terminal(GRID, width) for width in (ROOM, ROOM - 1))
    headings = [[str(column.header).replace("\n", " ") for column in table.columns] for table in (wide, narrow)]
    assert [name for name in headings[0] if name not in headings[1]] == ["of matmul", "p90", "p99", "memory MB"]


def test_serve_and_engine_have_tables_too():
    text = render(results(served("closed", 1), served("open", 2), run=replace(RUN, command="serve")))
    assert "| load | check | requests/s | tokens/s | TTFT ms |" in text
    assert "| closed: 1 caller | = | 1.09 | 6.56 | 100 | 100 | 100 | 10 | 10 | 10 | 10 of 10 | 1.09 |" in text
    assert "tiny, cpu float32: 10 requests, lengths alpaca. check: = the requests" in text
    text = render(
        results(scene("one by one", 9.0, 9.1), scene("together", 3.0, 3.1), run=replace(RUN, command="engine"))
    )
    assert "|  |  | together | = | 900 | 900 | 90 | 3.05 | 29.5 | 2.97 |" in text
    with pytest.raises(ValueError, match="only a run of decode has a view summary"):
        render(results(served("open", 2), run=replace(RUN, command="serve")), "summary")


@pytest.mark.parametrize("kinds", [("open",), ("closed",), ("open", "closed")])
def test_a_load_curve_is_drawn(kinds, tmp_path):
    pytest.importorskip("matplotlib")
    cells = [served(kind, level, gap=0.01 * level) for kind in kinds for level in (1, 2, 4)]
    write(tmp_path / "serve.jsonl", replace(RUN, command="serve"), *cells)
    assert bench("report", tmp_path) == 0
    assert "![serve-load](serve-load.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "serve-load.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_keeps_cpu_and_gpu_apart(tmp_path, capsys):
    write(tmp_path / "a-gpu.jsonl", GPU, record("octavo:triton"))
    write(tmp_path / "b-cpu.jsonl", RUN, *GRID)
    assert bench("report", tmp_path) == 0
    cpu, gpu = (tmp_path / "report.md").read_text().split("\n## ")[1:]
    assert cpu.startswith("b-cpu: decode on a processor, 2 cores")
    assert gpu.startswith("a-gpu: decode on a GPU")
    assert "triton" not in cpu
    assert "octavo:cpu" not in gpu
    assert "Driver 570." in gpu


def test_pictures_are_drawn_and_linked(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path / "cpu.jsonl", RUN, *GRID)
    assert bench("report", tmp_path / "cpu.jsonl", "--output", tmp_path / "page") == 0
    page = (tmp_path / "page" / "report.md").read_text()
    for name in ("throughput", "latency", "roofline", "tradeoff"):
        assert f"![cpu-{name}](cpu-{name}.png)" in page
        assert (tmp_path / "page" / f"cpu-{name}.png").read_bytes()[:4] == b"\x89PNG"
        drawing = (tmp_path / "page" / f"cpu-{name}.svg").read_text()
        assert "</svg>" in drawing


def test_a_single_cell_and_no_cell_at_all_make_a_page(tmp_path):
    write(tmp_path / "one.jsonl", RUN, record())
    write(tmp_path / "none.jsonl", RUN)
    assert bench("report", tmp_path) == 0
    assert "_Nothing was measured._" in (tmp_path / "report.md").read_text()


BAD = {
    "nothing": ((), "either RESULTS or --readme"),
    "no such file": (("nowhere.jsonl",), "no such file of results"),
    "no results": (("{empty}",), "holds no file of results"),
    "no readme": (("--readme", "nowhere.md"), "nowhere.md: no such file"),
    "not writable": (("{results}", "--output", "/proc/octavo"), "cannot write to /proc/octavo"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_one_line(bad, tmp_path, capsys):
    arguments, message = BAD[bad]
    places = {"empty": tmp_path / "empty", "results": write(tmp_path / "a" / "b.jsonl", RUN, record())}
    places["empty"].mkdir()
    assert bench("report", *(argument.format(**places) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_tables_of_a_readme_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "COMMITTED", tmp_path)
    write(tmp_path / "cpu.jsonl", RUN, *GRID)
    blocks = "<!-- bench:cpu -->\nold\n<!-- /bench -->\nmiddle\n<!-- bench:cpu summary -->\n\n<!-- /bench -->\n"
    readme = tmp_path / "README.md"
    readme.write_text(f"Intro\n{blocks}end\n")
    assert bench("report", "--readme", readme) == 0
    new = readme.read_text()
    assert new.startswith("Intro\n<!-- bench:cpu -->\n| batch x context |")
    assert "<!-- bench:cpu summary -->\n| contender | dtype | 1 x 16" in new
    assert new.endswith("<!-- /bench -->\nend\n")
    assert "old" not in new
    assert report.refreshed(new) == new


def test_an_empty_block_waits_for_its_results():
    text = "<!-- bench:to-come -->\n<!-- /bench -->\n"
    assert report.refreshed(text) == text


@pytest.mark.parametrize(("block", "message"), [("bench:gone", "no such file"), ("bench:cpu half", "small or targets")])
def test_a_block_that_names_nothing(block, message, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "COMMITTED", tmp_path)
    write(tmp_path / "cpu.jsonl", RUN, *GRID)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        report.refreshed(f"<!-- {block} -->\nan old table\n<!-- /bench -->")


def test_the_small_view_is_the_shortest_context_and_the_known_contenders():
    cells = [*GRID, record("ctranslate2", batch=1, context=16)]
    text = render(results(*cells), "small")
    assert text.splitlines()[0] == "| contender | dtype | 1 x 16 | 8 x 16 |"
    assert "| octavo:cpu | float32 | 100 (4.00) | 283 (4.00) |" in text
    assert "ctranslate2" not in text


@pytest.mark.parametrize("page", ["README.md", "bench/results/README.md"])
def test_the_readmes_have_not_drifted_from_the_committed_results(page):
    """Make them anew with `python -m octavo.bench report --readme README.md bench/results/README.md`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert report.refreshed(text) == text
    blocks = list(report.BLOCK.finditer(text))
    assert blocks, "a page without tables"
    assert text.count("<!-- bench:") == len(blocks), "a block is not closed"


def test_every_committed_file_of_results_has_its_table():
    page = (ROOT / "bench/results/README.md").read_text(encoding="utf-8")
    names = {f"{path.parent.name}/{path.stem}" for path in report.COMMITTED.glob("*/*.jsonl")}
    assert names <= {match[1] for match in report.BLOCK.finditer(page)}
