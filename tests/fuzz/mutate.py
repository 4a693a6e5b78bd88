"""Mutations: of bytes, and of the structure of a JSON document."""

import copy
import json
import random
from typing import Any

BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\n", b"\x1b[31m", b"{", b'"', b"\xff" * 8, b"\x00" * 8)
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"), "",
    "a", "\x1b[31m\r\n\x00", "\ud800", "é" * 3000, "(a+)+$", "../../etc/passwd", [], {}, [[]], [None], [0] * 3000,
    {"a": None},
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes, most of them near the beginning, where headers are."""
    for _ in range(rng.randint(1, 4)):
        end = min(len(data), 4096) if rng.random() < 0.7 else len(data)
        at = rng.randrange(end + 1)
        length = rng.choice((1, 1, 2, 8, 100))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            chosen = rng.choice(BYTES)
            data = data[:at] + chosen + data[at + len(chosen) :]
        elif kind == 2:
            data = data[:at] + rng.choice(BYTES) * length + data[at:]
        elif kind == 3:
            data = data[:at] + data[at + length :]
        elif kind == 4:
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        else:
            data = data[:at]
    return data


def mutate_json(document: Any, rng: random.Random) -> Any:
    """One to three values replaced, removed, repeated or exchanged, most of them near the root."""
    document = {"": json.loads(json.dumps(document))}
    for _ in range(rng.randint(1, 3)):
        holder, key = _place(document, rng)
        kind = rng.randrange(6)
        if kind == 0 and holder is not document:
            holder.pop(key)
        elif kind == 1:
            other, place = _place(document, rng)
            holder[key] = json.loads(json.dumps(other[place]))
        elif kind == 2 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 2, 10, 1000)) + rng.choice((-1, 0, 1))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return document[""]


def _place(document: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and a key or an index of it."""
    holder, key = document, ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


def mutate_text(text: str, rng: random.Random) -> bytes:
    """A JSON text changed in its structure or, one time in three, in its bytes."""
    if rng.random() < 0.33:
        return mutate_bytes(text.encode(), rng)
    return json.dumps(mutate_json(json.loads(text), rng)).encode("utf-8", "surrogatepass")
