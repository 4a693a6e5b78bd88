"""`bench decode --speculative`: a line a text, and an exit code that tells whether guesses changed one."""

import re

import pytest
from rich.console import Console
from tiny_folder import save_tiny

from octavo.bench.measuring import speculating
from octavo.gpt import LLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def short_tasks(tmp_path, monkeypatch):
    tasks = tmp_path / "tasks.json"
    tasks.write_text('{"a list": "one two one two", "a word": "three"}')
    monkeypatch.setattr(speculating, "TASKS", tasks)


def test_each_text_has_a_line(folder, capsys):
    console = Console(width=200)
    assert speculating.speculate(console, str(folder), "float32", "dense", "ngram:3", 24, 2) == 0
    lines = capsys.readouterr().out
    assert re.search(r"a list .* 24 .* \d+ of \d+ .* yes", lines)
    assert re.search(r"a word .* yes", lines)


def test_a_text_that_changed_is_told(folder, monkeypatch):
    plain, other = (LLM(str(folder), dtype="float32") for _ in range(2))
    monkeypatch.setattr(other, "generate", lambda ids, *others, **more: plain.generate(ids[1:], *others, **more))
    row = speculating.measure(plain, other, "a list", "one two one two", 24, 1)
    assert not row.is_same
    assert row.cells()[-1] == "NO"
