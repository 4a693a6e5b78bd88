"""Options for the form of an output: a JSON schema or a grammar in a file, an expression, or a choice of texts."""

import argparse
import json
from pathlib import Path
from typing import Any

from octavo.gpt.quoting import one_line

OF_FIELD = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("form of the output")
    parser.add_argument("--json-schema", metavar="FILE", help="JSON that is valid by this schema")
    parser.add_argument("--regex", metavar="RE", help="a text that this expression matches as a whole")
    parser.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; repeatable")
    parser.add_argument("--grammar", metavar="FILE", help="a text of this grammar, in GBNF or Lark")


def structured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the field of SamplingParams that was asked for; ValueError names a file that holds no such form."""
    form = {field: value for field, name in OF_FIELD.items() if (value := getattr(arguments, name)) is not None}
    for field in {"json", "grammar"} & form.keys():
        try:
            text = Path(form[field]).read_text(encoding="utf-8")
            form[field] = json.loads(text) if field == "json" else text
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{form[field]}: no {OF_FIELD[field]}: {one_line(str(error), 200)}") from None
    return {"structured": form} if form else {}
