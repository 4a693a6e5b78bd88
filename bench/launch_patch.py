"""Rows of the launch table in its source text: found through the syntax tree, rewritten in place, shown as a patch."""

import ast
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import Row

TILE_NAMES = ("num_warps", "num_stages", "BLOCK_M", "BLOCK_N", "BLOCK_K")  # what `_tile` takes, in order


class Place(NamedTuple):
    """Where a row stands: `LINEAR["sm_90", 2].few[0]`, or `ATTENTION["sm_90", 2][64]` with no field."""

    table: str
    key: tuple[str, int]
    field: str | None
    number: int  # of the row in its field, or its key

    def __str__(self) -> str:
        name = f'{self.table}["{self.key[0]}", {self.key[1]}]'
        return f"{name}.{self.field}[{self.number}]" if self.field else f"{name}[{self.number}]"


def diff(source: str, changes: Sequence[tuple[Place, Row]]) -> str:
    """A unified diff of kernels/launch.py; empty without changes. ValueError where a row is not found in the text."""
    new = rewritten(source, changes)
    lines = difflib.unified_diff(
        source.splitlines(True), new.splitlines(True), "a/kernels/launch.py", "b/kernels/launch.py"
    )
    return "".join(lines)


def rewritten(source: str, changes: Sequence[tuple[Place, Row]]) -> str:
    """The text with each row replaced; what several tables share changes for all of them."""
    edits: dict[tuple[int, int], str] = {}
    tree = ast.parse(source)
    for place, row in changes:
        call = _find(tree, place)
        start = _offset(source, call.lineno, call.col_offset)
        end = _offset(source, call.end_lineno or 0, call.end_col_offset or 0)
        edits[start, end] = _text(call, row)
    for (start, end), text in sorted(edits.items(), reverse=True):
        source = source[:start] + text + source[end:]
    return source


def _find(tree: ast.Module, place: Place) -> ast.Call:
    """The call that makes the row at that place."""
    value = _at_key(_assigned(tree, place.table), place.key)
    value = _resolved(tree, value)
    if place.field is None:
        value = _at_key(value, place.number)
    else:
        value = _at_field(tree, value, place.field)
        value = value.elts[place.number] if isinstance(value, ast.Tuple) else value
    if not isinstance(value, ast.Call) or _name(value) not in ("_tile", "row"):
        raise ValueError(f"{place} is not a plain row in kernels/launch.py")
    return value


def _at_field(tree: ast.Module, value: ast.expr, name: str) -> ast.expr:
    """A field of `LinearRows(...)`, or of `replace(_OTHER, ...)`, which falls back on the other's."""
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == name:
                return keyword.value
        if _name(value) == "replace":
            return _at_field(tree, _resolved(tree, value.args[0]), name)
    raise ValueError(f"no field {name} in kernels/launch.py where it should be")


def _at_key(value: ast.expr, key: Any) -> ast.expr:
    if isinstance(value, ast.Dict):
        for own, item in zip(value.keys, value.values, strict=True):
            if own is not None and ast.literal_eval(own) == key:
                return item
    raise ValueError(f"no key {key} in kernels/launch.py where it should be")


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
    raise ValueError(f"no table {name} in kernels/launch.py")


def _resolved(tree: ast.Module, value: ast.expr) -> ast.expr:
    return _assigned(tree, value.id) if isinstance(value, ast.Name) else value


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _text(call: ast.Call, row: Row) -> str:
    """The call with the row's numbers in it; what it takes besides stays."""
    numbers = {"num_warps": row.num_warps, "num_stages": row.num_stages, **row.tiles}
    if _name(call) == "_tile":
        rest = [ast.unparse(keyword) for keyword in call.keywords]
        return f"_tile({', '.join([*(str(numbers[name]) for name in TILE_NAMES), *rest])})"
    tiles = [f"{name}={value}" for name, value in row.tiles.items()]
    return f"row({', '.join([str(row.num_warps), str(row.num_stages), *tiles])})"


def _offset(source: str, line: int, column: int) -> int:
    """Where a line and its UTF-8 column begin in the text."""
    lines = source.splitlines(True)
    return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())


def current(place: Place) -> Row:
    """The row that the table holds now."""
    rows: Any = getattr(launch, place.table)[place.key]
    return rows[place.number] if place.field is None else getattr(rows, place.field)[place.number]
