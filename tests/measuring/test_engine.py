"""bench engine: two ways to serve the same requests, compared only where they said the same."""

import pytest
import torch

from octavo.bench import engine
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.reporting import records
from octavo.bench.reporting.tables import table_of

from bench_tiny import bench, checkpoint


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    before = torch.get_num_threads()
    peaks = Peaks(2e10, 3e10, {"float32": 1e11})
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: peaks)
    monkeypatch.setattr(engine, "WIDTHS", ((3, 20), (3, 9)))
    yield
    torch.set_num_threads(before)


def run(model, out, *arguments):
    small = ("--requests", "9", "--prefix", "32", "--repeats", "2", "--threads", "1")
    return bench("engine", "--model", model, "--dtype", "float32", *small, "--output", out, *arguments)


def test_both_scenes_are_checked_and_measured(model, tmp_path, capsys):
    assert run(model, tmp_path / "out") == 0
    results = records.read(tmp_path / "out")
    assert results.run.planned == 4
    ways = [(cell.scene, cell.way) for cell in results.cells]
    assert ways == [(scene, way) for scene, pair in engine.SCENES.items() for way in pair]
    for cell in results.cells:
        assert cell.verdict == "same"
        assert len(cell.seconds) == 2
        assert cell.tokens_per_s == pytest.approx(cell.new_tokens / cell.median_s)
    off, on, alone, together = results.cells
    assert (off.prompt_tokens, off.new_tokens, off.computed_tokens) == (9 * 48, 9 * 8, 9 * 48)
    assert alone.computed_tokens == together.computed_tokens == alone.prompt_tokens
    assert on.computed_tokens == 32 + 9 * 16  # the prefix once, what is their own of all
    shown = capsys.readouterr().out
    assert "caching on" in shown
    assert "times" in shown


def test_ways_that_disagree_get_no_figure(gpt2, tmp_path, monkeypatch, capsys):
    serve = engine.Variant.serve

    def spoiled(self, requests):
        answers = serve(self, requests)
        return [[1] * len(tokens) for tokens in answers] if self.name == "together" else answers

    monkeypatch.setattr(engine.Variant, "serve", spoiled)
    assert run(gpt2, tmp_path / "out", "--scene", "batching") == 0
    cells = records.read(tmp_path / "out").cells
    assert [(cell.verdict, cell.seconds, cell.median_s) for cell in cells] == [("wrong", [], None)] * 2
    assert all(row[-5:] == ["-"] * 5 for row in table_of(cells).rows())


def test_ctrl_c_keeps_the_scenes_that_are_done(gpt2, tmp_path, capsys, monkeypatch):
    measure = engine.measure

    def interrupted(plan, scene, *rest):
        if scene == "batching":
            raise KeyboardInterrupt
        return measure(plan, scene, *rest)

    monkeypatch.setattr(engine, "measure", interrupted)
    assert run(gpt2, tmp_path / "out") == 130
    assert [cell.scene for cell in records.read(tmp_path / "out").cells] == ["prefix"] * 2
    assert "written to" in capsys.readouterr().out
    monkeypatch.setattr(engine, "measure", measure)
    assert run(gpt2, tmp_path / "out", "--resume") == 0
    assert [cell.scene for cell in records.read(tmp_path / "out").cells] == ["prefix"] * 2 + ["batching"] * 2
    assert run(gpt2, tmp_path / "out", "--resume") == 0
    assert len(records.read(tmp_path / "out").cells) == 4


def test_the_ratio_is_that_of_the_slower_way(gpt2, tmp_path):
    assert run(gpt2, tmp_path / "out", "--scene", "batching") == 0
    alone, together = records.read(tmp_path / "out").cells
    first, second = table_of([alone, together]).rows()
    assert first[-1] == "1.00"
    assert float(second[-1]) == pytest.approx(alone.median_s / together.median_s, abs=0.01)


BAD = {
    "unknown scene": (("--scene", "opera"), "scene must be prefix or batching, not 'opera'"),
    "requests 0": (("--requests", "0"), "requests must be at least 1, not 0"),
    "prefix 0": (("--prefix", "0"), "prefix must be at least 1, not 0"),
    "repeats 0": (("--repeats", "0"), "repeats must be at least 1, not 0"),
    "over the window": (("--prefix", "60"), "a request of 84 tokens is over the model's window of 64"),
    "two dtypes": (("--dtype", "float32,bfloat16"), "dtype must be one, not 2"),
    "unknown backend": (("--backend", "gpu"), "backend must be one of"),
    "unknown model": (("--model", "gpt5"), "unknown model 'gpt5'"),
    "cannot write": (("--output", "/proc/octavo"), "cannot write to /proc/octavo"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_one_line_and_nothing_is_written(bad, gpt2, tmp_path, capsys):
    arguments, message = BAD[bad]
    assert run(gpt2, tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
