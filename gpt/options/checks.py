"""Checks of a caller's values. Each returns the value as plain Python, or raises ValueError with one line.

Numbers may be NumPy's, or arrays and tensors without a dimension; lists may be any iterable but text and mappings.
"""

import math
import numbers
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from octavo.gpt.quoting import quoted

MAX_TOKEN_ID = 2**31 - 1


def plain(value: Any) -> Any:
    """Return arrays and tensors as numbers and lists, and other numbers as Python's; all else as it is."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "ndim") else value


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer in [low, high]."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], not {quoted(value)}")
    return value


def number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    """A finite number in [low, high], or in (low, high]; -inf only where it is the lower end."""
    value = plain(value)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    real = real and (abs(value) <= sys.float_info.max or value == low)
    if not real or not low <= value <= high or (open_low and value == low):
        above = f"[{low:g}" if not open_low else f"({low:g}"
        below = f"{high:g}]" if math.isfinite(high) else "inf)"
        raise ValueError(f"{name} must be a number in {above}, {below}, not {quoted(value)}")
    return value


def boolean(name: str, value: Any) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {quoted(value)}")
    return value


def items(name: str, value: Any) -> tuple[Any, ...]:
    """The items of an iterable; None has none."""
    value = () if value is None else plain(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence, not {quoted(value)}")
    return tuple(value)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids, each once; one alone is a number."""
    value = plain(value)
    listed = (value,) if isinstance(value, int | float) else items(name, value)
    return tuple(dict.fromkeys(integer(name, token_id, 0, MAX_TOKEN_ID) for token_id in listed))


def texts(name: str, value: Any, most: int) -> tuple[str, ...]:
    """Texts of at least a character; one alone is a text."""
    listed = (value,) if isinstance(value, str) else items(name, value)
    if len(listed) > most:
        raise ValueError(f"{name} has {len(listed)} strings, at most {most} are looked for")
    for text in listed:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} must be non-empty strings, not {quoted(text)}")
    return listed
