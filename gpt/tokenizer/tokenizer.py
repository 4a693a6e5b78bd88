"""Text to token ids and back, by Hugging Face's `tokenizers`, on a vocabulary from the model's own files.

A tokenizer knows nothing of files: `hf`, `gguf`, `ranks` and `mistral` make its engine from them. Text that spells a
control token is ordinary text, unless `parse_special` asks; else only chat templates and token ids make control tokens.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import tokenizers

from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.chat_template import RenderOptions, choose_template, render_hidden
from octavo.gpt.tokenizer.engine import ControlTokens, guarded, parsing_twin
from octavo.gpt.tokenizer.message_text import SpecialTokenEscaper
from octavo.gpt.tokenizer.template_files import Templates
from octavo.gpt.tokenizer.token_bytes import TokenBytes, most_characters

MAX_ID = 2**31 - 1  # ids are 32-bit integers in the network


class Tokenizer:
    """`encode` and `decode` of one model. All errors are ValueErrors in one line.

    bos_id, eos_id, eos_ids   token ids; None, None and () where the files name none
    before, after             ids that a prompt of this model begins and ends with; `encode` itself never adds them
    add_bos                   whether `before` holds any
    specials                  text -> id of the control tokens
    chat_template             the jinja2 template of the files, several by their names, or None
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        source: str = "tokenizer",
        *,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        chat_template: Templates = None,
    ) -> None:
        self.bos_id, self.eos_ids, self.before, self.after = bos_id, tuple(eos_ids), tuple(before), tuple(after)
        self.eos_id = self.eos_ids[0] if self.eos_ids else None
        self.add_bos = bool(self.before)
        self.chat_template = chat_template
        self._engine, self._source = engine, source
        self._make_special([id for id in (bos_id, *self.eos_ids) if id is not None])
        vocabulary = engine.get_vocab(with_added_tokens=True)
        self._check_numbers(vocabulary)
        self.vocab_size = max(vocabulary.values()) + 1
        self.specials = {token.content: id for id, token in engine.get_added_tokens_decoder().items() if token.special}
        self._special_ids = frozenset(self.specials.values())
        self._bytes = TokenBytes(engine, source)
        self._control = ControlTokens(engine)
        self._most_characters = most_characters(engine, vocabulary)  # of one token; 0: no bound
        self._parsing_engine = parsing_twin(engine)
        engine.encode_special_tokens = True

    def _make_special(self, ids: Iterable[int]) -> None:
        """Have the engine pass over these tokens, which begin and end texts, wherever it passes over control tokens."""
        added = self._engine.get_added_tokens_decoder()
        for id in ids:
            token, text = added.get(id), self._engine.id_to_token(id)
            if text is not None and not (token and token.special):
                strips = {"lstrip": token.lstrip, "rstrip": token.rstrip} if token else {}
                self._engine.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True, **strips)])

    def _check_numbers(self, vocabulary: Mapping[str, int]) -> None:
        ids = vocabulary.values()
        if not ids:
            raise ValueError(f"{self._source}: the vocabulary is empty")
        if len(set(ids)) != len(ids):
            raise ValueError(f"{self._source}: two tokens of the vocabulary share an id")
        if max(ids) > MAX_ID:
            raise ValueError(f"{self._source}: token id {max(ids)} is beyond {MAX_ID}")

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the ids of a text, without those that prompts begin and end with.

        parse_special: whether text that spells a control token becomes that token, as in a prompt that a chat template
        rendered; leave it False for text of others, who could forge the ends of turns.
        """
        self._check(text)
        engine = self._parsing_engine if parse_special else self._engine
        ids: list[int] = guarded(
            f"{self._source}: this text cannot be cut", lambda: engine.encode(text, add_special_tokens=False).ids
        )
        return ids

    def as_prompt(self, ids: list[int]) -> list[int]:
        """Return a text's ids between those that this model's prompts begin and end with; BOS for no ids at all."""
        framed = [*self.before, *ids, *self.after]
        return framed if framed or self.bos_id is None else [self.bos_id]

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that the text surely has, in no time: by its length and the longest token's."""
        return -(-len(text) // self._most_characters) if self._most_characters else 0

    def check_length(self, text: str, limit: int | None) -> None:
        """Raise ValueError for a text that surely has more than `limit` tokens."""
        if limit is not None and (least := self.least_tokens(text)) > limit:
            raise ValueError(f"the prompt has {least:,} tokens or more, max_model_len is {limit:,}")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        limit: int | None = None,
        chat_template: str | Path | None = None,
        **options: Unpack[RenderOptions],
    ) -> list[int]:
        """Return the ids of a conversation in the model's own template: `[{"role": str, "content": str}, ...]`.

        The template's control tokens become special; the same text inside a message, a tool or a document stays text,
        though the template may look for it there. chat_template: another one, or the name of one of the model's. A
        conversation that surely has more than `limit` tokens is a ValueError, soon.
        """
        template = choose_template(self.chat_template, chat_template, options.get("tools") is not None)
        bos, eos = (self.token_text(id) if id is not None else None for id in (self.bos_id, self.eos_id))
        named = {"bos_token": bos, "eos_token": eos}
        text, escaper = render_hidden(template, messages, self.specials, named, **options)
        self._check(text)
        self.check_length(text, limit)
        return self.encode_rendered(text, escaper)

    def encode_rendered(self, text: str, escaper: SpecialTokenEscaper) -> list[int]:
        """Return the ids of what a chat template wrote, in which an escaper hides what messages say of control tokens.

        Where no message spells one, the text is encoded as a whole; else in the stretches between the template's, each
        of which may then get the space that some vocabularies put before a text.
        """
        revealed = escaper.reveal(text)
        parts = [part if isinstance(part, int) else escaper.reveal(part) for part in self._control.cut(text)]
        if parts == self._control.cut(revealed):
            return self.encode(revealed, parse_special=True)
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.encode(part)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False, continues: bool = False) -> str:
        """Return the text of the ids, U+FFFD where it is not UTF-8; ValueError for an id outside the vocabulary.

        continues: whether they go on from other text, as a completion does; a text's own first token may lose a space.
        """
        if not isinstance(ids, Iterable):
            raise ValueError(f"ids must be a list of token ids, not {type(ids).__name__}")
        numbers = [self._check_id(token_id) for token_id in ids]
        shown = [number for number in numbers if not (skip_special_tokens and number in self._special_ids)]
        pieces = [self._bytes[number] for number in shown]
        if shown and not continues:
            pieces[0] = self._bytes.at_start(shown[0])
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id inside a text; b"" for an id that the files leave unused."""
        return self._bytes[self._check_id(token_id)]

    def token_text(self, token_id: int) -> str:
        """Return the text of one control token, as templates write it."""
        return self._engine.id_to_token(self._check_id(token_id)) or ""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def _check_id(self, token_id: int) -> int:
        try:
            number = operator.index(token_id)
        except TypeError:
            raise ValueError(f"a token id must be an integer, not {quoted(token_id)}") from None
        if not 0 <= number < self.vocab_size:
            raise ValueError(f"token id {number} is outside the vocabulary of {self.vocab_size}")
        return number

    @staticmethod
    def _check(text: str) -> None:
        if not isinstance(text, str):
            raise ValueError(f"text must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"text holds a lone surrogate, U+{code:04X}, at position {error.start}") from None
