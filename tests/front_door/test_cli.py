"""Bad input: one line on standard error, exit code 2, no traceback."""

import json
import subprocess
import sys

import pytest

from octavo.gpt.cli import COMMANDS, main

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
    "two answers": (["chat", "Hi", "--n", "2"], "n is 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, capsys):
    arguments, message = BAD[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("octavo: ")
    assert captured.err.count("\n") == 1
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
