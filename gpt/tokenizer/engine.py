"""Around an engine, a `tokenizers.Tokenizer`: its refusals in one line, pairs of tokens as its merges, and where a text
spells control tokens, found by the same automaton that the engine finds them with.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import models

from octavo.gpt.quoting import one_line, quoted


def guarded(complaint: str, call: Callable[[], Any]) -> Any:
    """Return what `call` returns; a ValueError that begins with the complaint for whatever the package raises."""
    try:
        return call()
    except (OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise ValueError(f"{complaint}: {one_line(reason, 200)}") from None


def build(source: str, make: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    engine: tokenizers.Tokenizer = guarded(f"{source}: not a tokenizer that can be used", make)
    return engine


def parsing_twin(engine: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return an engine that makes control tokens of text that spells them, and cuts other text as the given one does.

    Both share the vocabulary, so the twin takes neither time nor memory. One engine and a lock would do, if a lock
    could not stay locked where an interrupt falls beside its release.
    """
    twin = tokenizers.Tokenizer(engine.model)
    for name in ("normalizer", "pre_tokenizer"):
        if (part := getattr(engine, name)) is not None:
            setattr(twin, name, part)
    twin.add_tokens([token for _, token in sorted(engine.get_added_tokens_decoder().items())])
    return twin


def split_merge(merge: str, source: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"{source}: {quoted(merge)} is not a pair of tokens")
    return left, right


def all_merges(tokens: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that joins to a token, in the order of the tokens they make."""
    for token in tokens:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens:
                yield left, right


class ControlTokens:
    """Cuts a text at control tokens: the leftmost, then the longest."""

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        self._engine = engine

    @cached_property
    def _cutter(self) -> tuple[tokenizers.Tokenizer, list[int | None]]:
        """A tokenizer of the added tokens alone, all else being one unknown token, and what its ids stand for."""
        added = self._engine.get_added_tokens_decoder()
        cutter = tokenizers.Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        cutter.add_special_tokens([_unnormalised(token) for token in added.values() if token.content])
        ids = {cutter.token_to_id(token.content): id for id, token in added.items() if token.special and token.content}
        return cutter, [ids.get(number) for number in range(cutter.get_vocab_size())]

    def cut(self, text: str) -> list[str | int]:
        """Return the stretches of other text and the ids of the control tokens between them, in order."""
        cutter, meaning = self._cutter
        found = cutter.encode(text, add_special_tokens=False)
        parts: list[str | int] = []
        end = 0
        for number, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if (id := meaning[number]) is not None:
                parts += [text[end:start], id]
                end = stop
        return [part for part in (*parts, text[end:]) if part != ""]


def _unnormalised(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=True,
    )
