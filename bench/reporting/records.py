"""Results as JSON lines: a line of provenance, then a line for each thing measured.

Every line names the schema and its kind. A file is read whole or refused: another schema, a missing or unknown field,
a wrong type or a line cut short is a ValueError that names file and line. Stored figures that follow from the samples,
as files of earlier versions hold them, are left aside.
"""

import json
import os
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from octavo.bench.reporting.schema import KIND_OF, KINDS, SCHEMA, VERDICTS, Host, Run, derived

# Fields that files of earlier versions lack.
ADDED: dict[type, dict[str, Any]] = {Run: {"neighbours": 0}, Host: {"way": "fused"}}


@dataclass(frozen=True)
class Results:
    """A run and what it measured."""

    run: Run
    cells: list[Any]
    path: Path

    @property
    def latest(self) -> list[Any]:
        """The last line of each thing measured: a resumed run measures again what failed."""
        return latest(self.cells)


def latest(cells: Sequence[Any]) -> list[Any]:
    return list({cell.key: cell for cell in cells}.values())


def append(path: Path, record: Any) -> None:
    """Writes one line, whole and on disk before the next is measured."""
    kind = next(name for name, kind in KINDS.items() if type(record) is kind)
    line = json.dumps({"schema": SCHEMA, "kind": kind, **asdict(record)}, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Results:
    """The file's run and lines; FileNotFoundError or ValueError, one clear line."""
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} files of results: name one")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of results")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text, so no file of results") from None
    lines = text.split("\n")
    if lines.pop():
        raise ValueError(f"{path}: line {len(lines) + 1} is cut short")
    if not lines:
        raise ValueError(f"{path}: empty")
    run, *cells = [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]
    if not isinstance(run, Run) or any(isinstance(cell, Run) for cell in cells):
        raise ValueError(f"{path}: must hold one line of kind run, the first")
    kind = KIND_OF.get(run.command)
    for number, cell in enumerate(cells, start=2):
        if kind is None or type(cell) is not KINDS[kind]:
            raise ValueError(f"{path}: line {number} is none of a run of {plain(run.command)}")
    return Results(run, cells, path)


def _parse(line: str, where: str) -> Any:
    try:
        table = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        schema = table.get("schema") if isinstance(table, dict) else None
        raise ValueError(f"{where} is of schema {schema!r:.40}, this version reads {SCHEMA!r}")
    if (word := table.get("kind")) not in list(KINDS):
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, not {word!r:.40}")
    kind = KINDS[word]
    values = {name: table[name] for name in table.keys() - derived(kind) - {"schema", "kind"}}
    values = ADDED.get(kind, {}) | values
    wanted, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
    if wrong := sorted(wanted ^ set(values)):
        raise ValueError(f"{where}: {'unknown' if wrong[0] in values else 'missing'} field {plain(wrong[0])}")
    for name in wanted:
        if not _is(values[name], hints[name]):
            raise ValueError(f"{where}: {name} has the wrong type, {values[name]!r:.40}")
    if (verdict := values.get("verdict", "same")) not in VERDICTS:
        raise ValueError(f"{where}: verdict must be one of {', '.join(VERDICTS)}, not {verdict!r:.40}")
    return kind(**values)


def plain(word: Any) -> str:
    """What a file says, fit for a message: short, in one line, control characters escaped."""
    return repr(str(word))[1:-1][:60]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _is(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, parts[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (type(None) if hint is type(None) else hint)
