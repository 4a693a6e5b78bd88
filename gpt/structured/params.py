"""StructuredOutputsParams: the form that an output has to have, in vLLM's words.

Bad values are refused when it is made. Whether a form can be followed, the library says that compiles it (`guides.py`),
when the request is added.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import octavo.gpt.options.checks as checks
from octavo.gpt.quoting import one_line, quoted

MAX_LENGTH = 2**20  # characters of a schema, an expression or a grammar
MAX_CHOICES = 10_000
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """One of six forms, and what is said about JSON's. Two that ask for the same are equal and hash alike.

    A schema or tag that came as a dict is kept as its JSON text, since the order of its keys is that of the output's.
    """

    json: str | Mapping[str, Any] | None = None  # a JSON schema
    regex: str | None = None  # of the whole output, without look-around
    choice: Iterable[str] | None = None  # one of these texts
    grammar: str | None = None  # GBNF, as llama.cpp's and xgrammar's, or Lark
    json_object: bool | None = None  # any JSON object
    structural_tag: str | Mapping[str, Any] | None = None  # free text, in which triggers begin what a schema describes
    disable_any_whitespace: bool = False  # JSON without white space between its parts, of which 32 characters may be
    disable_additional_properties: bool = False  # objects have no properties but those that their schema names

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"structured must have one of {', '.join(KINDS)}, not {found}")
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            object.__setattr__(self, name, checks.boolean(f"structured {name}", getattr(self, name)))
        for name in KINDS:
            value = _CHECKS[name](f"structured {name}", getattr(self, name)) if name in given else None
            object.__setattr__(self, name, value)

    @property
    def kind(self) -> str:
        """The form that is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @classmethod
    def from_any(cls, name: str, value: Any) -> "StructuredOutputsParams | None":
        """Return None and params as they are, and params for a dict of their fields; ValueError else."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be StructuredOutputsParams or a dict of its fields, not {quoted(value)}")
        known = {field.name for field in fields(cls)}
        if unknown := next((key for key in value if key not in known), None):
            raise ValueError(f"{name} has no field {quoted(unknown)}: it has {', '.join(sorted(known))}")
        return cls(**value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a non-empty string, not {quoted(value)}")
    if len(value) > MAX_LENGTH:
        raise ValueError(f"{name} has {len(value)} characters, at most {MAX_LENGTH} are compiled")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds a lone surrogate") from None
    return value


def _json(name: str, value: Any) -> str:
    """The value as JSON text, of which no number is NaN or infinite."""
    try:
        read = json.loads(value, parse_constant=_refuse) if isinstance(value, str) else value
        text = json.dumps(read, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {one_line(str(error), 200)}") from None
    if not isinstance(read, Mapping):
        raise ValueError(f"{name} must be a JSON object, not {quoted(read)}")
    return _text(name, text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON's")


def _choice(name: str, value: Any) -> tuple[str, ...]:
    choices = checks.texts(name, value, MAX_CHOICES)
    if not choices:
        raise ValueError(f"{name} is empty: no output could be made")
    _text(name, "".join(choices))
    return choices


_CHECKS = {
    "json": _json,
    "regex": _text,
    "choice": _choice,
    "grammar": _text,
    "json_object": checks.boolean,
    "structural_tag": _json,
}
