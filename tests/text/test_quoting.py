"""What messages quote is one short line that no terminal obeys."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.gpt.quoting import LINE, QUOTED, escaped, is_text, one_line, quoted

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\x85\u2028\u2029\u202e\u2066\x9b31m\x7f\ud800"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Loud:
    def __repr__(self) -> str:
        return HOSTILE


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("gelu", "'gelu'"),
        ("naïve 你好", "'naïve 你好'"),
        ("a\nb\u2028c\x1b", r"'a\nb\u2028c\x1b'"),
        (12, "12"),
        (None, "None"),
        ([1, "x"], "[1, 'x']"),
        (Path("a/b"), "'a/b'"),
        ("x" * QUOTED, f"'{'x' * QUOTED}'"),
        ("x" * 5000, f"'{'x' * (QUOTED - 1)}..."),
        (10**5000, "<int>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_quoted(value: Any, shown: str):
    assert quoted(value) == shown


@pytest.mark.parametrize("wrap", [str, str.encode, lambda text: [text] * 1000, lambda text: {text: {text: text}}, Path])
@pytest.mark.parametrize("text", ["x" * 10**6, "\x1b" * 1000, "\U0001f600" * 1000, "\x00"], ids=ascii)
def test_what_is_quoted_is_one_short_printable_line(wrap, text):
    shown = quoted(wrap(text))
    assert shown.isprintable()
    assert len(shown) <= QUOTED + 3


def test_a_representation_of_control_characters_is_escaped():
    assert quoted(Loud()).isprintable()
    assert "Broken" in quoted(Broken())


def test_a_nest_too_deep_is_cut():
    nest: list[Any] = []
    for _ in range(10**5):
        nest = [nest]
    assert len(quoted(nest)) < QUOTED


@given(st.text(), st.integers(10, 50))
def test_one_line_is_one_printable_line(text, limit):
    line = one_line(text, limit)
    assert line.isprintable()
    assert len(line) <= limit + 5


def test_one_line_keeps_both_ends():
    line = one_line(f"{HOSTILE} first {'x' * 5 * LINE} last")
    assert "first" in line
    assert line.endswith("last")
    assert one_line("a\nb\t c [bench]") == "a b c [bench]"
    assert len(one_line("x" * 10**7)) < 2 * LINE


def test_text_keeps_what_a_terminal_may_show():
    text = "naïve\t你好\n👩‍💻 می‌خواهم \u202b"
    assert escaped(text, is_text) == text
    assert escaped("\x1b[2J\x9b\r\x7f", is_text) == r"\x1b[2J\x9b\r\x7f"
