"""Text of messages inside a chat template: it reads as it was written, yet can form no control token.

Where a message holds the first character of some control token, a private character that occurs nowhere else stands in
its place until the rendered text is cut at control tokens; tools, documents and a template's variables are as messages
here. So a control token in that text began in the template, and no cutting, trimming or joining of messages makes
another. To the template the text is `MessageText`, which compares, searches and splits as the text that was written.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any


class SpecialTokenEscaper:
    """Puts private characters for the characters that control tokens begin with, and back."""

    def __init__(self, specials: Iterable[str], template: str, given: Any) -> None:
        texts = [text for text in specials if text]
        first = sorted({text[0] for text in texts})
        taken = {*"".join(texts), *template, *json.dumps(given, ensure_ascii=False)}
        free = (code for code in range(0xF0000, 0x10FFFE) if chr(code) not in taken)
        self._private = list(map(chr, islice(free, len(first))))
        if len(self._private) < len(first):
            raise ValueError("messages use up every private Unicode character, none is left to mark control-token text")
        self._first = first

    def hide(self, value: Any) -> Any:
        """Return the same value of lists, dicts and texts, the texts hidden."""
        if isinstance(value, str):
            return self.text(_replaced(self.reveal(value), self._first, self._private))
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def text(self, value: str) -> str:
        """Return a text as MessageText if a part of it is hidden."""
        return MessageText(value, self) if any(char in value for char in self._private) else value

    def reveal(self, value: Any) -> Any:
        """Return the same value of lists, tuples, dicts and texts, the texts as they were written."""
        if isinstance(value, str):
            return _replaced(value, self._private, self._first)
        if isinstance(value, dict):
            return {self.reveal(key): self.reveal(item) for key, item in value.items()}
        return type(value)(map(self.reveal, value)) if type(value) in (list, tuple) else value


def _replaced(text: str, old: list[str], new: list[str]) -> str:
    for before, after in zip(old, new, strict=True):
        text = str.replace(text, before, after)
    return text


class MessageText(str):
    """A text with private characters in it. Parts keep them; what is asked of it is asked of the text as written."""

    _escaper: SpecialTokenEscaper
    _plain: str

    def __new__(cls, value: str, escaper: SpecialTokenEscaper) -> "MessageText":
        text = super().__new__(cls, value)
        text._escaper, text._plain = escaper, escaper.reveal(value)
        return text

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return str(self._escaper.hide(repr(self._plain)))

    def __hash__(self) -> int:
        return hash(self._plain)

    def __getitem__(self, key: Any) -> str:
        return self._escaper.text(super().__getitem__(key))

    def __iter__(self) -> Iterator[str]:
        return map(self._escaper.text, super().__iter__())

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        return self._parts(self._plain.split(self._escaper.reveal(sep), maxsplit), sep)

    def rsplit(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        return self._parts(self._plain.rsplit(self._escaper.reveal(sep), maxsplit), sep)

    def partition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._parts(self._plain.partition(self._escaper.reveal(sep)), "")
        return first, middle, last

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._parts(self._plain.rpartition(self._escaper.reveal(sep)), "")
        return first, middle, last

    def lstrip(self, chars: str | None = None) -> str:
        return self[len(self) - len(self._plain.lstrip(self._escaper.reveal(chars))) :]

    def rstrip(self, chars: str | None = None) -> str:
        return self[: len(self._plain.rstrip(self._escaper.reveal(chars)))]

    def strip(self, chars: str | None = None) -> str:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> str:
        return self[len(self) - len(self._plain.removeprefix(self._escaper.reveal(prefix))) :]

    def removesuffix(self, suffix: str) -> str:
        return self[: len(self._plain.removesuffix(self._escaper.reveal(suffix)))]

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        if not old:
            return self._escaper.text(super().replace(old, new, count))
        return self._escaper.text(new.join(self.split(old, count)))

    def _parts(self, plain: Iterable[str], sep: str | None) -> list[str]:
        """Return the stretches of this text that these parts of the written text are, `sep` or blanks between them."""
        parts, end = [], 0
        for part in plain:
            start = self._plain.find(part, end) if sep is None else end
            end = start + len(part)
            parts.append(self[start:end])
            end += len(sep or "")
        return parts


def _of_this_text(name: str) -> Callable[..., str]:
    def method(self: MessageText) -> str:
        return self._escaper.text(getattr(str, name)(self))

    return method


def _of_the_written_text(name: str) -> Callable[..., Any]:
    def method(self: MessageText, *args: Any) -> Any:
        return getattr(str, name)(self._plain, *map(self._escaper.reveal, args))

    return method


COMPARISONS = "__contains__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
SEARCHES = "startswith endswith find rfind index rindex count"
CASES = "lower upper casefold capitalize title swapcase"
for _name in CASES.split():
    setattr(MessageText, _name, _of_this_text(_name))
for _name in f"{COMPARISONS} {SEARCHES}".split():
    setattr(MessageText, _name, _of_the_written_text(_name))
