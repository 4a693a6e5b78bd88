"""Whatever is wrong with a command, on every command alike: one clear line, exit code 2, results so far kept."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from tiny_folder import save_tiny

from octavo.bench import tune
from octavo.bench.__main__ import COMMANDS
from octavo.bench.measuring.op_cases import Case
from octavo.bench.measuring.roofline import Peaks
from octavo.kernels.triton import launch

from bench_tiny import RUN, bench, record, write

PEAKS = Peaks(2e10, 3e10, {"float32": 1e11, "bfloat16": 2e11})

MEASURING = {
    "decode": ("--model", "{model}", "--batch", "1", "--context", "8", "--new-tokens", "3", "--quick"),
    "ops": ("--model", "{model}", "--batch", "1", "--context", "8", "--prefill", "8", "--only", "write_kv"),
    "host": ("--tokenizer", "none", "--seqs", "1", "--context", "8", "--steps", "30"),
    "serve": ("--model", "{model}", "--rate", "none", "--callers", "1", "--requests", "1", "--mix", "fixed:4:3"),
    "engine": ("--model", "{model}", "--scene", "prefix", "--requests", "2", "--prefix", "4", "--repeats", "1"),
    "perplexity": ("--model", "{model}", "--window", "16"),
    "memory": ("--model", "{model}", "--context", "16"),
}
READING = ("report", "compare")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: PEAKS)
    yield
    torch.set_num_threads(before)


def refused(capsys, *arguments):
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert bench(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("octavo.bench: ")
    return line


def measuring(command, model):
    return [command, *(part.format(model=model) for part in MEASURING[command])]


def test_every_command_is_tried_here():
    assert set(COMMANDS) == {*MEASURING, *READING, "tune"}


@pytest.mark.parametrize("command", MEASURING)
def test_an_output_that_cannot_be_written(command, model, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in ("/proc/octavo", tmp_path / "file", tmp_path / "file" / "deeper"):
        line = refused(capsys, *measuring(command, model), "--output", out)
        assert str(out) in line
    assert (tmp_path / "file").read_text() == "mine"


SPOILS = {
    "another schema": (lambda text: text.replace("octavo.bench/2", "octavo.bench/0"), "is of schema 'octavo.bench/0'"),
    "cut short": (lambda text: text[:-9], "is cut short"),
    "no JSON": (lambda text: text.replace("{", "(", 1), "line 1 is no JSON"),
    "another command": (lambda text: text.splitlines(True)[0].replace('"command": "', '"command": "x'), "a run of x"),
    "empty": (lambda text: "", "empty"),
}


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A file of results of each measuring command."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: PEAKS)
        for command in MEASURING:
            assert bench(*measuring(command, model), "--output", folder / command) == 0
            found[command] = (folder / command / f"{command}.jsonl").read_text()
    return found


@pytest.mark.parametrize("command", MEASURING)
def test_results_that_are_there_are_kept(command, made, model, tmp_path, capsys):
    path = tmp_path / f"{command}.jsonl"
    path.write_text(made[command])
    line = refused(capsys, *measuring(command, model), "--output", tmp_path)
    assert f"{path} exists: --resume goes on with it, another --output leaves it alone" in line
    assert path.read_text() == made[command]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("command", MEASURING)
def test_results_that_cannot_be_gone_on_with(command, spoil, made, model, tmp_path, capsys):
    change, message = SPOILS[spoil]
    path = tmp_path / f"{command}.jsonl"
    path.write_text(change(made[command]))
    line = refused(capsys, *measuring(command, model), "--output", tmp_path, "--resume")
    assert str(path) in line
    assert message in line
    assert path.read_text() == change(made[command])


@pytest.mark.parametrize("spoil", [name for name in SPOILS if name != "another command"])
@pytest.mark.parametrize("command", READING)
def test_results_that_cannot_be_read(command, spoil, tmp_path, capsys):
    change, message = SPOILS[spoil]
    good = write(tmp_path / "good.jsonl", RUN, record())
    bad = tmp_path / "bad.jsonl"
    bad.write_text(change(good.read_text()))
    line = refused(capsys, command, good, bad)
    assert str(bad) in line
    assert message in line


def test_results_of_two_commands_are_not_compared(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, record())
    new = write(tmp_path / "new.jsonl", replace(RUN, command="host"))
    assert "has command decode" in refused(capsys, "compare", old, new)


@pytest.mark.parametrize("command", ["decode", "ops", "serve", "engine"])
def test_unknown_names(command, model, tmp_path, capsys):
    base = measuring(command, model)
    for option, name in (("--model", "gpt5"), ("--backend", "cuda"), ("--dtype", "int3"), ("--device", "tpu")):
        line = refused(capsys, *base, option, name, "--output", tmp_path / "out")
        assert repr(name) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tune_needs_a_gpu(capsys):
    assert "tune needs a CUDA device" in refused(capsys, "tune")


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_are_one_line(command, capsys):
    assert "--speed" in refused(capsys, command, *(["a", "b"] if command == "compare" else []), "--speed", "9")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_list_of_commands_what_the_command_does(command, capsys):
    assert bench(command, "--help") == 0
    assert f"example:  python -m octavo.bench {command}" in capsys.readouterr().out
    assert import_module(f"octavo.bench.{command}").run.__doc__ == COMMANDS[command]


def test_no_command_and_an_unknown_one(capsys):
    assert "required: COMMAND" in refused(capsys)
    assert "invalid choice: 'decod'" in refused(capsys, "decod")


def test_brackets_and_colons_of_a_path_are_shown(tmp_path, capsys):
    folder = tmp_path / "a[bold]b[red] :smile: \\[c]"
    results = write(folder / "decode.jsonl", RUN, record("octavo:[cpu]"))
    assert bench("report", results) == 0
    assert f"written to {folder}/report.md" in capsys.readouterr().out
    assert bench("compare", results, results) == 0
    assert f"old {results}:" in capsys.readouterr().out


def test_advice_keeps_its_brackets(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("octavo.bench.report.find_spec", lambda name: None)
    assert bench("report", write(tmp_path / "decode.jsonl", RUN, record())) == 0
    assert "pip install 'octavo[bench]'" in capsys.readouterr().out


def test_a_folder_of_several_runs_is_not_one(tmp_path, capsys):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", RUN, record())
    assert "holds 2 files of results: name one" in refused(capsys, "compare", tmp_path, tmp_path)


def test_a_readme_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert "No space left on device" in refused(capsys, "report", "--readme", readme)


def test_the_schema_of_a_line_is_the_first_thing_that_is_said(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"throughput": 9000}) + "\n")
    assert "line 1 is of schema None" in refused(capsys, "report", path)


def test_tune_proposes_a_config_as_data():
    """The op is launched with the candidate while it is timed, and the table is as it was afterwards."""
    lookup, device, dtype = launch.attention, torch.device("cpu"), torch.bfloat16
    config = launch.attention(device, dtype, 64)
    faster = {**config, "num_warps": 8}
    with tune.launched_with("causal_attention", faster):
        assert launch.attention(device, dtype, 64) is faster
    assert launch.attention is lookup
    assert json.loads(json.dumps(tune.proposal("causal_attention", "sm_90", "bfloat16", config, faster, 0.1))) == {
        "arch": "sm_90", "dtype": "bfloat16", "op": "causal_attention", "old": config,
        "new": faster, "saved": 0.1,
    }  # fmt: skip


def test_tune_keeps_a_config_unless_another_wins_twice():
    """The fastest candidate by a clock that gives every config one time; a candidate that fails has none."""
    config = launch.attention(torch.device("cpu"), torch.bfloat16, 64)
    case = Case("causal_attention", "", tuple, 0)
    winner = next(candidate for candidate in tune.candidates(case.op, config) if candidate["num_warps"] == 8)

    def clock(seconds):
        return lambda _, tried: 1.0 if tried == config else seconds if tried == winner else None

    assert tune.search(config, [case], clock(0.99)) == (config, 0.0)
    assert tune.search(config, [case], clock(0.5)) == (winner, 0.5)
