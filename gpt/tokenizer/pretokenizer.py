"""How a text is cut before BPE sees it: the model's split rules, and the tokens its files add to the vocabulary.

A pre-tokenizer is a tuple of regular expressions, applied in turn: each cuts every piece of the one before into its
matches and the gaps between them, and sees nothing outside its piece. `ONE_PATTERN` names the tuples that one regular
expression says as well; tiktoken runs those in its own engine. Every other tuple goes through `split`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"


def _cl100k(digits: str) -> str:
    words = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    return words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


LLAMA3 = _cl100k(r"\p{N}{1,3}")
QWEN2 = _cl100k(r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The same cuts in one pattern, with nothing to backtrack over but the whitespace before a word. In the second, a run
# of whitespace that a numeral follows stands alone, as it does at the end of a text: its piece ends there.
ONE_PATTERN = {
    (GPT2,): r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    (DIGIT, GPT2): r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s++(?![^\p{N}])|\s+(?!\S)|\s",
    (LLAMA3,): LLAMA3,
    (QWEN2,): QWEN2,
    (TEKKEN,): TEKKEN,
}


def split(text: str, stages: Iterable[str]) -> list[str]:
    """Return the pieces of `text`, in order; joined they are the text."""
    pieces = [text] if text else []
    for stage in stages:
        pattern = regex.compile(stage)
        pieces = [part for piece in pieces for part in _isolate(pattern, piece)]
    return pieces


def _isolate(pattern: regex.Pattern[str], text: str) -> Iterator[str]:
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        if match.end() > match.start():
            yield match.group()
        end = match.end()
    if end < len(text):
        yield text[end:]


# Unicode's White_Space; `str.isspace` accepts four control characters more.
_BLANKS = "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char not in "\x1c\x1d\x1e\x1f")
_BLANK_RUN = re.compile(f"[{_BLANKS}]*")


class AddedToken(NamedTuple):
    """A token found by its text before any merge; a `special` one is never found in text that a user wrote."""

    text: str
    id: int
    special: bool
    lstrip: bool = False  # drops the whitespace on its left
    rstrip: bool = False


class AddedTokenSplitter:
    """Finds added tokens in a text: the leftmost, then the longest."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = sorted((token for token in tokens if token.text), key=lambda token: -len(token.text))
        self._pattern = re.compile("|".join(f"({re.escape(token.text)})" for token in self._tokens))

    def cut(self, text: str) -> Iterator[str | int]:
        """Yield the stretches of ordinary text and the ids of the tokens between them, in order."""
        end = 0
        for match in self._pattern.finditer(text) if self._tokens else ():
            token = self._tokens[(match.lastindex or 0) - 1]
            before = text[end : match.start()]
            if before := before.rstrip(_BLANKS) if token.lstrip else before:
                yield before
            yield token.id
            blanks = _BLANK_RUN.match(text, match.end()) if token.rstrip else None
            end = blanks.end() if blanks else match.end()
        if end < len(text):
            yield text[end:]
