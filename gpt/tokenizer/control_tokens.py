"""Where a text spells control tokens, found by the same automaton that the engine finds them with."""

from functools import cached_property

import tokenizers
from tokenizers import models


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
