"""bench memory: each contender in a process of its own, and what it took is told apart from what was there."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from tiny_folder import save_tiny

from octavo.bench import memory
from octavo.bench.decode import make_plan
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.peers.base import Generation, Octavo, UnsupportedError
from octavo.bench.reporting import records, tables
from octavo.bench.reporting.schema import Memory

from bench_tiny import bench

MEGABYTE = 2**20
LINE = Memory("m", False, "octavo:cpu", "1", "q8_0", 0, "quantised", "", 1.5, 10**8, 2 * 10**8, 10**8, 3 * 10**8,
              125 * 10**6)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def chosen(model, **given):
    """The command's arguments, parsed."""
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    arguments = parser.parse_args(["--model", str(model), "--backend", "reference", "--dtype", "float32"])
    return argparse.Namespace(**vars(arguments) | {"context": "16", "threads": 1} | given)


class Greedy(Octavo):
    """Takes 64 MB to open, keeps 32 of them, and 1 MB for each length of a prompt beyond ten."""

    def __init__(self, settings, backend):
        super().__init__(settings, backend)
        most = np.ones(64 * MEGABYTE, np.uint8)
        self.kept = [most[::2].copy()]

    def generate(self, prompts, new_tokens):
        if new_tokens == 2 and len(prompts[0]) > memory.FEW_LENGTHS:
            self.kept.append(np.ones(MEGABYTE, np.uint8))
        return Generation([[0] * new_tokens for _ in prompts], 1.0, [1.0])


def test_what_is_taken_is_counted(model, monkeypatch):
    monkeypatch.setattr("octavo.bench.measuring.decoding.Octavo", Greedy)
    arguments = chosen(model, lengths=40)
    plan, _ = make_plan(arguments)
    record = memory.measure(arguments, 0, memory._about(plan, plan.entries[0], 40))
    assert (record.verdict, record.contender, record.dtype) == ("same", "octavo:reference", "float32")
    assert record.load_peak_bytes is not None, "Linux tells"
    assert 90 < record.load_peak_bytes / MEGABYTE < 130
    assert 30 < record.loaded_bytes / MEGABYTE < 50
    assert abs(record.resident_bytes - record.loaded_bytes) < 5 * MEGABYTE
    assert 28 < record.grown_bytes / MEGABYTE < 34
    assert record.weights_bytes > 0
    with pytest.raises(UnsupportedError, match="it runs in float32 here"):
        memory.measure(arguments, 0, replace(record, dtype="bfloat16"))


def test_the_command_starts_a_process_for_each(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: Peaks(2e10, 3e10, {}))
    command = ("memory", "--model", model, "--context", "16", "--dtype", "float32", "--weights", "file")
    assert bench(*command, "--backend", "reference", "--threads", "1", "--output", tmp_path) == 0
    dense, file = records.read(tmp_path).cells
    assert (dense.dtype, dense.verdict) == ("float32", "same")
    assert min(dense.load_peak_bytes, dense.peak_bytes, dense.load_s) > 0
    assert (file.verdict, file.detail) == ("unsupported", f"{model} is no GGUF file")
    assert "MB resident" in capsys.readouterr().out


def test_the_table_has_multiples_of_the_weights():
    (row,) = tables.table_of([LINE]).rows()
    assert row == ["octavo:cpu", "q8_0", "≠", "100", "1.5", "200", "2.00", "100", "300", "125", "1.25"]
    assert tables.table_of([replace(LINE, grown_bytes=10**6)]).rows()[0][-1] == "1"


BAD = {
    "lengths below 0": (("--lengths", "-1"), "lengths must be at least 0, not -1"),
    "lengths beyond the window": (("--lengths", "125"), "lengths 125 is over the 120 tokens that the model's window"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_one_line(bad, model, tmp_path, capsys):
    arguments, message = BAD[bad]
    assert bench("memory", "--model", model, "--context", "16", "--output", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
