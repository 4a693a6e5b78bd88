"""How messages quote what files and callers gave: on one line, cut, and with nothing in it that a terminal obeys."""

import os
from collections.abc import Callable
from reprlib import Repr
from typing import Any
from unicodedata import category

QUOTED = 80  # characters of a quoted value, about
LINE = 1000  # characters of a whole message

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = QUOTED
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxfrozenset = 10


def quoted(value: Any, limit: int = QUOTED) -> str:
    """`repr(value)`, on one line of printable characters, cut behind about `limit` of them with "...".

    Never raises, and never takes longer for a longer value. A path is quoted as its text.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str | bytes | bytearray):
        shown, is_cut = repr(value[:limit]), len(value) > limit
    else:
        shown, is_cut = escaped(_short(value)), False
    return f"{shown[:limit]}..." if is_cut or len(shown) > limit + 2 else shown


def one_line(text: str, limit: int = LINE) -> str:
    """The text with spaces for its white space, escapes for what is not printable, and its middle cut out."""
    text = escaped(" ".join(text[: 8 * limit].split())) + ("..." if len(text) > 8 * limit else "")
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def escaped(text: str, is_safe: Callable[[str], bool] = str.isprintable) -> str:
    """The text with an escape like \\x1b for each character that is not safe.

    Not printable are, beside control characters, marks that turn the direction of writing and other line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if is_safe(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def is_text(character: str) -> bool:
    """Whether a terminal shows the character or starts a line with it: all but control characters and surrogates."""
    return character in "\n\t" or category(character) not in ("Cc", "Cs")


def _short(value: Any) -> str:
    try:
        return _repr.repr(value)
    except Exception:  # of a stranger's __repr__, or of a number too long to be written
        return f"<{type(value).__name__}>"
