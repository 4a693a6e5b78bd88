"""Guides: which ids may come next in an output that has to have a form.

llguidance compiles the form and walks it, a byte at a time, over a trie of the vocabulary. Which ids a state allows is
a function of the form and the tokens so far, so a guide needs nothing but these. Where only one text can follow, the
tokenizer's own tokens of it are what is allowed.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.gpt.quoting import one_line
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.structured.grammars import grammar_of
from octavo.gpt.structured.params import StructuredOutputsParams
from octavo.gpt.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CACHED = 64  # forms that stay compiled

Words = NDArray[np.int32]


class Guide:
    """Where one output stands in its form. `advance` follows it, `look_ahead` says what may come."""

    def __init__(self, matcher: "LLMatcher", unwanted: Sequence[int] = ()) -> None:
        """unwanted: ids that end an output, and may come only where nothing else can."""
        self._matcher, self._unwanted = matcher, unwanted

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the form can be followed no further, where it grew too complex; empty else."""
        return _reason(self._matcher.get_error())

    def advance(self, token_id: int) -> None:
        """Take the next token of the output."""
        self._matcher.consume_token(token_id)

    def fill(self, words: Words) -> None:
        """Write which ids may come next, as `ops.sample` reads it: int32 `[num_words]`, a bit for each id."""
        if self._matcher.is_error():
            words[:] = 0
            return
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._unwanted:
            others = words.view(np.uint32).copy()
            for id in self._unwanted:
                others[id // 32] &= ~np.uint32(1 << id % 32)
            if others.any():
                words[:] = others.view(np.int32)

    def look_ahead(self, token_ids: Iterable[int], words: Words) -> None:
        """Write what may come next, and what after each of these tokens: `fill`, `[len(token_ids) + 1, num_words]`.

        Rows behind a token that may not come itself stay as they are: nobody gets there. The guide stays where it is.
        """
        taken = 0
        for row, token_id in zip(words, [*token_ids, None], strict=True):
            self.fill(row)
            if token_id is None or not self._matcher.try_consume_tokens([token_id]):
                break
            taken += 1
        self._matcher.rollback(taken)


class Guides:
    """Makes guides for one tokenizer and a network's `vocab_size` and `eos_ids`; compiled forms are kept."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = [id for id in eos_ids if id < vocab_size]
        self._vocabulary = lru_cache(1)(self._make_vocabulary)
        self._compiled = lru_cache(CACHED)(self._compile)

    def guide(self, params: SamplingParams) -> Guide | None:
        """Return a guide at the beginning of the form that the request wants, None where it wants none.

        ValueError, in one line, for a form that cannot be followed.
        """
        form = params.form
        if form is None:
            return None
        return Guide(self._compiled(form).deep_copy(), self._eos_ids if params.ignore_eos else ())

    def _compile(self, params: StructuredOutputsParams) -> "LLMatcher":
        if self._tokenizer is None:
            raise ValueError("structured output needs a tokenizer, and this model has none")
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ValueError("structured output needs llguidance: pip install 'octavo[structured]'") from None
        try:
            grammar = grammar_of(params, self._tokenizer.specials)
        except (ValueError, RecursionError) as refusal:
            raise ValueError(f"structured {params.kind} cannot be followed: {_reason(str(refusal))}") from None
        matcher = LLMatcher(self._vocabulary(), grammar, log_level=0)
        if error := matcher.get_error():
            raise ValueError(f"structured {params.kind} cannot be followed: {_reason(error)}")
        return matcher

    def _make_vocabulary(self) -> "LLTokenizer":
        """The bytes of every id, as a trie; an id that stands for no text is never allowed, but for the end."""
        from llguidance import LLTokenizer, TokenizerWrapper

        assert self._tokenizer is not None
        source = _Vocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
        made = LLTokenizer(TokenizerWrapper(source), n_vocab=self._vocab_size, eos_token=source.ends)
        source.greedy = made.greedy_tokenize
        return made


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        known = min(tokenizer.vocab_size, vocab_size)
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(id) if id < known else b"" for id in range(vocab_size)]
        self.special_token_ids = [id for id in range(known) if tokenizer.is_special(id)]
        self.ends = [*eos_ids] or self.special_token_ids[:1]
        if not self.ends:
            raise ValueError("structured output needs a token that ends it, and this model has no control token")
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, self.ends[0]
        self.greedy: Any = None

    def __call__(self, text: bytes) -> list[int]:
        """Return the ids of a text that goes on from another: the tokenizer's own, if they spell just that."""
        ids = self._tokenizer.encode(text.decode("utf-8", "replace"))
        spelled = b"".join(self.tokens[id] if id < len(self.tokens) else b"" for id in ids)
        return ids if spelled == text or self.greedy is None else self.greedy(text.decode("utf-8", "replace"))


def _reason(error: str) -> str:
    """What the library says, without its drawings: the line behind "error:", or the first."""
    said = re.search(r"^error: .+", error, re.MULTILINE)
    return one_line(said[0].removeprefix("error: ") if said else error.partition("\n")[0], 300)
