"""Memo: what follows from a step's index tensors alone, made by the first layer that needs it and kept for the others.

An op that takes `memo` gives the same result without one. A memo belongs to one forward step: a dict that begins empty.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Memo = dict[str, Any]
T = TypeVar("T")


def once(memo: Memo | None, key: str, make: Callable[[], T]) -> T:
    """What `make` gave the first time that this memo was asked for `key`."""
    if memo is None:
        return make()
    if key not in memo:
        memo[key] = make()
    return memo[key]
