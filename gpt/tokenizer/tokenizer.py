"""Text to token ids and back: byte-level BPE, run by tiktoken on a vocabulary from the model's own files.

A tokenizer knows nothing of files: `gguf` and `hf` read them into a `Vocabulary`. Text that spells a control token is
ordinary text, unless `parse_special` asks; else only chat templates and token ids make control tokens.

tiktoken merges the pair whose joined bytes rank lowest, Hugging Face's tokenizers the pair that ranks lowest among the
merges. The two agree where every merge joins what earlier merges built, as trained merges do; the readers check it.
"""

import operator
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import tiktoken

from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.chat_template import RenderOptions, choose_template, render_hidden
from octavo.gpt.tokenizer.pretokenizer import ONE_PATTERN, AddedToken, AddedTokenSplitter, split

MOST_COMPOSED = 4  # characters that NFC makes one of: a Greek letter with three marks

# tiktoken's regular expressions keep a state for each character of whitespace before a word, a million at most.
_LONG_BLANK = re.compile(r"(?<!\s)\s{100000}")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens of one model, in one form whatever the files."""

    tokens: Mapping[int, bytes]  # every id
    mergeable: Mapping[bytes, int]  # tokens that BPE builds -> id: single bytes, then the merges in order
    splits: tuple[str, ...]  # the pre-tokenizer
    added: tuple[AddedToken, ...] = ()
    unmerged: Mapping[bytes, int] = field(default_factory=dict)  # pieces that are tokens though no merge builds them
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # the first is the end of a text, the others end a turn
    unk_id: int | None = None  # for a byte with no token; None drops such bytes
    fuse_unk: bool = False
    add_bos: bool = False
    normal_form: Literal["NFC"] | None = None
    chat_template: str | Mapping[str, str] | None = None  # several by their names


class Tokenizer:
    """`encode` and `decode` of one model. All errors are ValueErrors in one line.

    bos_id, eos_id, eos_ids   token ids; None, None and () where the files name none
    add_bos                   whether a prompt of this model starts with bos_id; `encode` itself never adds it
    specials                  text -> id of the control tokens
    chat_template             the jinja2 template of the files, several by their names, or None
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.bos_id, self.eos_ids, self.add_bos = vocabulary.bos_id, vocabulary.eos_ids, vocabulary.add_bos
        self.eos_id = self.eos_ids[0] if self.eos_ids else None
        self.chat_template = vocabulary.chat_template
        self.specials = {token.text: token.id for token in vocabulary.added if token.special}
        self._vocabulary = vocabulary
        self._bytes = {**vocabulary.tokens, **{token.id: token.text.encode() for token in vocabulary.added}}
        self.vocab_size = max(self._bytes) + 1
        self._special_ids = frozenset(self.specials.values())
        self._in_any_text = AddedTokenSplitter(token for token in vocabulary.added if not token.special)
        self._in_templates = AddedTokenSplitter(vocabulary.added)
        self._build_bpe()
        self._most_characters = self._longest_token() if self._keeps_all_text() else 0  # of one token; 0: no bound

    def _longest_token(self) -> int:
        """Return the most characters of a text that one token stands for; it has no fewer bytes than characters."""
        longest = max(map(len, self._bytes.values()))
        return longest * (MOST_COMPOSED if self._vocabulary.normal_form else 1)

    def _keeps_all_text(self) -> bool:
        """Return whether every character of a text is in some token, and no token stands for a run of any length."""
        strips = any(token.lstrip or token.rstrip for token in self._vocabulary.added)
        return not strips and self._unknown is None

    def _build_bpe(self) -> None:
        mergeable, splits = self._vocabulary.mergeable, self._vocabulary.splits
        self._one_pattern = splits in ONE_PATTERN and not self._vocabulary.unmerged
        self._id_of_rank = list(mergeable.values())
        self._bpe = tiktoken.Encoding(
            "octavo",
            pat_str=ONE_PATTERN.get(splits, r"(?s).+"),
            mergeable_ranks={token: rank for rank, token in enumerate(mergeable)},
            special_tokens={},
        )
        self._no_token = bytes(byte for byte in range(256) if bytes([byte]) not in mergeable)
        one_or_more = b"+" if self._vocabulary.fuse_unk else b""
        self._unknown = re.compile(b"[" + re.escape(self._no_token) + b"]" + one_or_more) if self._no_token else None

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the ids of a text, without BOS. Bytes that the vocabulary lacks become unk_id or nothing.

        parse_special: whether text that spells a control token becomes that token, as in a prompt that a chat template
        rendered; leave it False for text of others, who could forge the ends of turns.
        """
        self._check(text)
        added = self._in_templates if parse_special else self._in_any_text
        return self._encode_cut(added.cut(text))

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
        bos, eos = (self.token_bytes(id).decode() if id is not None else None for id in (self.bos_id, self.eos_id))
        named = {"bos_token": bos, "eos_token": eos}
        text, escaper = render_hidden(template, messages, self.specials, named, **options)
        self._check(text)
        self.check_length(text, limit)
        ids: list[int] = []
        for part in self._in_templates.cut(text):
            ids += [part] if isinstance(part, int) else self._encode_cut(self._in_any_text.cut(escaper.reveal(part)))
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of the ids, U+FFFD where it is not UTF-8; ValueError for an id outside the vocabulary."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        if not isinstance(ids, Iterable):
            raise ValueError(f"ids must be a list of token ids, not {type(ids).__name__}")
        skipped = self._special_ids if skip_special_tokens else frozenset()
        numbers = [self._check_id(token_id) for token_id in ids]
        return b"".join(self._bytes.get(number, b"") for number in numbers if number not in skipped)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id; b"" for an id that the files leave unused."""
        return self._bytes.get(self._check_id(token_id), b"")

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

    def _encode_cut(self, parts: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self._encode_ordinary(part) if isinstance(part, str) else [part]
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        if self._vocabulary.normal_form:
            text = unicodedata.normalize(self._vocabulary.normal_form, text)
        if self._one_pattern and not _LONG_BLANK.search(text) and not self._lacks_bytes_of(text):
            return [self._id_of_rank[rank] for rank in self._bpe.encode_ordinary(text)]
        ids: list[int] = []
        for piece in split(text, self._vocabulary.splits):
            data = piece.encode()
            token_id = self._vocabulary.unmerged.get(data)
            ids += self._encode_piece(data) if token_id is None else [token_id]
        return ids

    def _lacks_bytes_of(self, text: str) -> bool:
        data = text.encode() if self._no_token else b""
        return len(data.translate(None, self._no_token)) < len(data)

    def _encode_piece(self, data: bytes) -> list[int]:
        if self._unknown is None:
            return self._merge(data)
        unk_id = self._vocabulary.unk_id
        if unk_id is None:
            return self._merge(self._unknown.sub(b"", data))
        first, *others = (self._merge(known) for known in self._unknown.split(data))
        return first + [id for ids in others for id in [unk_id, *ids]]

    def _merge(self, data: bytes) -> list[int]:
        return [self._id_of_rank[rank] for rank in self._bpe._encode_single_piece(data)] if data else []
