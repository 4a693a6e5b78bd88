"""The command `octavo replay`: receipts of earlier requests, generated again."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.gpt.cli import output
from octavo.gpt.quoting import escaped

if TYPE_CHECKING:  # PyTorch is imported by what loads a model, and by nothing else
    from octavo.gpt.outputs import RequestOutput


def replay(arguments: argparse.Namespace) -> int:
    """Generate again what receipts tell of, and say where it differs first; exit code 1 if anything does."""
    from octavo.gpt import LLM
    from octavo.gpt.receipts.replay import replay

    own = {} if arguments.model is None else {"model": arguments.model}
    found = replay(Path(arguments.file), lambda model: LLM(**{**model, **own}))
    if arguments.json:
        output.json_line([each._asdict() for each in found])
    else:
        for each in found:
            if each.difference is not None:
                print(f"line {each.line}: {escaped(each.difference)}")
        count = Counter(each.difference is None for each in found)
        tokens = sum(each.num_tokens for each in found)
        print(f"{len(found)} receipts, {tokens} tokens: {count[True]} equal, {count[False]} different")
    return int(any(each.difference is not None for each in found))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="receipts, one a line, as `octavo generate --receipt FILE` writes them")
    parser.add_argument("--model", metavar="NAME", help="in place of the model that the receipts name")


def write(path: str, request: "RequestOutput") -> None:
    """Add a request's receipt to a file."""
    import json

    line: dict[str, Any] = request.receipt()
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
