"""The form of an output on the command line."""

import json
import re

import pytest
from tiny_folder import save_tiny

from octavo.gpt.cli import main

SCHEMA = {"enum": ["Zürich", "東京"]}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    return lambda *options: main(["generate", "the sun", "--model", str(folder), "--max-tokens", "40", *options])


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return path


def test_an_output_in_each_form(ask, schema, tmp_path, capsys):
    (tmp_path / "grammar").write_text('root ::= "a" [0-9]')
    for options, pattern in (
        (("--json-schema", str(schema)), '"(Zürich|東京)"'),
        (("--regex", "[xyz]{3}"), "[xyz]{3}"),
        (("--choice", "yes", "--choice", "no"), "yes|no"),
        (("--grammar", str(tmp_path / "grammar")), "a[0-9]"),
    ):
        assert ask(*options, "--json") == 0
        assert re.fullmatch(pattern, json.loads(capsys.readouterr().out)["outputs"][0]["text"])


def test_what_is_no_form_is_one_line(ask, schema, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for options, message in (
        (("--json-schema", str(broken)), f"{broken}: no json_schema: Expecting property name"),
        (("--json-schema", str(tmp_path / "none")), "none"),
        (("--regex", "("), "structured regex cannot be followed: unclosed group"),
        (("--regex", "a", "--json-schema", str(schema)), "structured must have one of"),
    ):
        assert ask(*options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
