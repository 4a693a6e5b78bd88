"""bench perplexity: every contender scores the same ids, and what scores them otherwise shows."""

import math

import pytest
from tiny_folder import save_tiny

from octavo.bench import perplexity
from octavo.bench.peers import registry
from octavo.bench.peers.sources import open_source
from octavo.bench.reporting import records, tables
from octavo.bench.reporting.schema import Perplexity
from octavo.gpt import LLM

from bench_tiny import bench

PEERS = [name for name in ("transformers", "llama.cpp") if registry.missing(name, "cpu") is None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    from octavo.bench.measuring.roofline import Peaks

    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: Peaks(2e10, 3e10, {}))
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))


def test_all_score_the_same_ids(model, tmp_path, capsys):
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("The sheet is folded. " * 20)
    command = ("--model", model, "--text", text, "--window", "32", "--dtype", "float32", "--backend", "cpu,reference")
    formats = ("--weights", "q8_0,file", "--peers", ",".join(PEERS), "--threads", "1", "--output", out)
    assert bench("perplexity", *command, *formats) == 0
    results = records.read(out)
    assert len(results.cells) == results.run.planned
    windows = perplexity.read_windows(open_source(str(model)), text, 32)
    assert sum(map(len, windows)) > 100
    assert {len(ids) for ids in windows[:-1]} == {32}
    llm = LLM(model, backend="reference", dtype="float32")
    losses = [llm.score(ids).nll * (len(ids) - 1) for ids in windows]
    expected = math.exp(sum(losses) / sum(len(ids) - 1 for ids in windows))
    dense = {cell.contender: cell for cell in results.cells if cell.dtype == "float32"}
    assert set(dense) == {"octavo:cpu", "octavo:reference", *PEERS}
    assert {cell.verdict for cell in dense.values()} == {"same"}
    for name, cell in dense.items():
        assert cell.perplexity == pytest.approx(expected, rel=1e-3 if name == "llama.cpp" else 1e-4), name
    ours = next(cell for cell in results.cells if (cell.contender, cell.dtype) == ("octavo:cpu", "q8_0"))
    assert (ours.verdict, ours.weight_bits) == ("quantised", 8.5)
    assert ours.perplexity == pytest.approx(expected, rel=0.02)
    refused = next(cell for cell in results.cells if (cell.contender, cell.dtype) == ("octavo:cpu", "file"))
    assert (refused.verdict, refused.detail) == ("unsupported", f"{model} is no GGUF file")
    assert f"{expected:.3f} perplexity" in capsys.readouterr().out
    assert bench("perplexity", *command, *formats, "--resume") == 0
    assert [cell.dtype for cell in records.read(out).cells[len(results.cells) :]] == [
        cell.dtype for cell in results.cells if not cell.passed
    ]


def test_a_row_stands_beside_llama_cpps_of_its_format():
    def line(contender, dtype, nll):
        return Perplexity("m", contender, "1", dtype, "text", 32, 100, "same", "", 8.0, nll)

    lines = [line("octavo:cpu", "int8", math.log(10.1)), line("llama.cpp:q8_0", "q8_0", math.log(10)),
             line("octavo:cpu", "q4_0", math.log(11))]  # fmt: skip
    rows = tables.table_of(lines).rows()
    assert [row[-2:] for row in rows] == [["10.100", "+1.00 %"], ["10.000", "-"], ["11.000", "-"]]


BAD = {
    "random weights": (("--model", "dummy:gpt2"), "has random weights: it predicts no text"),
    "no such text": (("--text", "nowhere"), "nowhere: no such file"),
    "one token": (("--window", "1"), "window must be at least 2, not 1"),
    "over the window": (("--window", "129"), "window 129 is over the model's window of 128"),
    "no text": (("--text", "{empty}"), "0 tokens, a score needs at least 2"),
    "no UTF-8": (("--text", "{bytes}"), "not UTF-8 text"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_scored_is_one_line(bad, model, tmp_path, capsys):
    arguments, message = BAD[bad]
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    places = {"empty": tmp_path / "empty", "bytes": tmp_path / "bytes"}
    given = [word.format(**places) for word in arguments]
    assert bench("perplexity", "--model", model, "--window", "16", "--output", tmp_path / "out", *given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
