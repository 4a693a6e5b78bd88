"""Bad input: one line on standard error, exit code 2, no traceback."""

import json
import subprocess
import sys

import pytest

from octavo.gpt.cli import commands, main
from octavo.gpt.cli.commands import COMMANDS, MODEL_OPTIONS, SAMPLING_OPTIONS
from octavo.gpt.cli.output import SHAPES
from octavo.gpt.loading.loader import DTYPES, WEIGHTS
from octavo.gpt.models.registry import FAMILIES
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels.backends import BACKENDS

BAD = {
    "unknown model": (["generate", "Hi", "--model", "no-such-model"], "no-such-model"),
    "missing folder": (["generate", "Hi", "--model", "./missing"], "missing"),
    "unknown backend": (["generate", "Hi", "--backend", "cuda-magic"], "backend"),
    "unknown dtype": (["generate", "Hi", "--dtype", "float8"], "dtype"),
    "unknown device": (["generate", "Hi", "--device", "tpu"], "device"),
    "temperature": (["generate", "Hi", "--temperature", "-1"], "temperature"),
    "nan": (["generate", "Hi", "--top-p", "nan"], "top_p"),
    "conflict": (["generate", "Hi", "--max-tokens", "3", "--min-tokens", "4"], "min_tokens"),
    "overflow": (["generate", "Hi", "--overflow", "wrap"], "overflow"),
    "logit bias": (["generate", "Hi", "--logit-bias", "12"], "logit_bias"),
    "no such file": (["score", "/no/such/file"], "/no/such/file"),
    "no prompt": (["generate"], "required: prompt (see octavo generate --help)"),
    "unknown option": (["generate", "Hi", "--colour", "\x1b[31m\nred"], r"--colour \x1b[31m red"),
    "no command": ([], "required: COMMAND (see octavo --help)"),
    "unknown weights": (["generate", "Hi", "--weights", "int3"], "weights"),
    "a folder": (["score", "/"], "/: Is a directory"),
    "a path of control characters": (["score", "/no/\x1b]0;x\x07"], r"/no/\x1b]0;x\x07: No such file"),
    "a long path": (["score", "/" + 5000 * "x/"], " ... "),
    "two answers": (["chat", "Hi", "--n", "2"], "n is 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, capsys):
    arguments, message = BAD[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("octavo: ")
    assert captured.err.removesuffix("\n").isprintable()
    assert len(captured.err) < 1100
    assert message in captured.err


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    assert leave.value.code == 0
    assert f"example:  octavo {name}" in capsys.readouterr().out


def test_models_lists_every_name(capsys):
    assert main(["models", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert {"smollm2", "gpt2", "gpt2-xl", "dummy:gpt2", "dummy:smollm2"} <= set(names)


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "octavo.gpt", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "usage: octavo" in result.stdout


GIVEN = {
    "n": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5,
    "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": -3, "max_tokens": 9, "min_tokens": 4, "logprobs": 2,
    "overflow": "shift",
}  # fmt: skip


def params_of(monkeypatch, *options):
    """The SamplingParams of a command line."""
    found = []
    monkeypatch.setattr(commands, "_llm", lambda arguments: found.append(commands._params(arguments)) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["generate", "Hi", *options])
    return found[0]


def test_every_option_reaches_its_field(monkeypatch):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in GIVEN.items()]
    options += ["--stop", "a", "--stop", "b", "--stop-token-ids", "3", "5", "--ignore-eos", "--logit-bias", "4=-2"]
    options += ["--bad-words", "c"]
    assert params_of(monkeypatch, *options) == SamplingParams(
        **GIVEN, stop=["a", "b"], stop_token_ids=[3, 5], ignore_eos=True, logit_bias={4: -2.0}, bad_words=["c"]
    )
    assert {*GIVEN, "stop", "stop_token_ids", "ignore_eos", "bad_words"} == set(SAMPLING_OPTIONS)


def test_without_options_only_the_length_is_the_command_line_s_own(monkeypatch):
    assert params_of(monkeypatch) == SamplingParams(max_tokens=256)


def test_the_parser_knows_the_library_s_names():
    """It is built without PyTorch, and so without the modules that define them."""
    known = {name: choices for name, choices, _ in MODEL_OPTIONS}
    assert known["backend"] == BACKENDS
    assert known["dtype"] == tuple(DTYPES)
    assert known["weights"] == WEIGHTS[1:]
    assert tuple(name for family in FAMILIES.values() for name in family.known_shapes) == SHAPES
