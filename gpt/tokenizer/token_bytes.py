"""What each token stands for in a text, in bytes: the tokenizer's decoder, applied to one token at a time.

A stream of tokens can be shown only where a token's bytes depend on nothing but the token and on whether it is the
first. Decoders of which that is not true are refused by name. `most_characters` bounds how much text one stands for,
so that a text far too long is refused before it is cut. https://huggingface.co/docs/tokenizers/api/decoders
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from octavo.gpt.quoting import quoted

PER_TOKEN = {"Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_SPELLING = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_UNSPELL = dict.fromkeys(_OTHERS, 0xFFFF) | {ord(char): byte for char, byte in BYTE_SPELLING.items()}

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # what byte fallback names a byte

_BEFORE = "a"  # a token's bytes inside a text are those that it adds to this one's


def from_byte_level(token: str) -> bytes:
    """Return the bytes that a byte-level token spells; its UTF-8 where a character stands for no byte."""
    try:
        return token.translate(_UNSPELL).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def stages(component: Any) -> list[dict[str, Any]]:
    """Return the parts of a normaliser, pre-tokenizer or decoder as the file describes them, sequences laid flat."""
    return [] if component is None else [*_flat(json.loads(component.__getstate__()))]


def _flat(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec
    for key in ("normalizers", "pretokenizers", "decoders"):
        for part in spec.get(key, ()):
            yield from _flat(part)


class TokenBytes:
    """The bytes of a token, by its id, looked up once.

    ValueError, which begins with `source`, for a decoder that needs more than one token at a time.
    """

    def __init__(self, engine: tokenizers.Tokenizer, source: str) -> None:
        parts = stages(engine.decoder)
        self._engine, self._known, self._decoder = engine, dict[int, bytes](), engine.decoder
        self._kinds = [part["type"] for part in parts]
        for part in parts:
            if part["type"] not in PER_TOKEN or part.get("stop"):
                raise ValueError(f"{source}: decoder {quoted(part['type'])} is not supported")
        self._added = {id: token.content for id, token in engine.get_added_tokens_decoder().items()}
        self._of_text: Callable[[str], bytes] = from_byte_level if "ByteLevel" in self._kinds else self._probed

    def __getitem__(self, id: int) -> bytes:
        """Return the bytes of a token inside a text, b"" for an id that the files leave unused."""
        if id not in self._known:
            self._known[id] = self._look_up(id)
        return self._known[id]

    def at_start(self, id: int) -> bytes:
        """Return the bytes of a token that a text begins with: some decoders drop a space there."""
        text = self._engine.id_to_token(id)
        if text is None or "ByteLevel" in self._kinds or self._is_byte(text):
            return self[id]
        return (text if self._decoder is None else self._decoder.decode([text])).encode()

    def _look_up(self, id: int) -> bytes:
        if "ByteLevel" in self._kinds and id in self._added:
            return self._added[id].encode()  # an added token is found as it reads, so it says what it reads
        text = self._engine.id_to_token(id)
        return b"" if text is None else self._of_text(text)

    def _is_byte(self, text: str) -> bool:
        return "ByteFallback" in self._kinds and BYTE_TOKEN.fullmatch(text) is not None

    def _probed(self, text: str) -> bytes:
        if self._is_byte(text):
            return bytes([int(text[3:5], 16)])
        if self._decoder is None:
            return f" {text}".encode()
        return self._decoder.decode([_BEFORE, text]).removeprefix(_BEFORE).encode()


MOST_COMPOSED = 4  # characters that NFC and NFKC make one of: a Greek letter with three marks

COMPOSING = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
KEEPING = {"Sequence", "Prepend", *COMPOSING}  # normalisers that drop nothing
CUTTING = {"Sequence", "ByteLevel", "Digits", "Metaspace"}  # pre-tokenizers that only cut
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def most_characters(engine: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> int:
    """Return that number; 0 where characters may vanish, or a token may stand for a run of any length.

    A spelled token has no fewer characters than the text it stands for.
    """
    normalisers, cutters = stages(engine.normalizer), stages(engine.pre_tokenizer)
    added = engine.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return 0
    if not all(map(_keeps_text, normalisers)) or not all(map(_only_cuts, cutters)):
        return 0
    if not _knows_all_bytes(engine, cutters, vocabulary):
        return 0
    composes = any(part["type"] in COMPOSING for part in normalisers)
    return max(map(len, vocabulary)) * (MOST_COMPOSED if composes else 1)


def _keeps_text(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        text = part["pattern"].get("String")
        return text is not None and len(text) <= len(part["content"])
    return part["type"] in KEEPING


def _only_cuts(part: dict[str, Any]) -> bool:
    return part["type"] in CUTTING or part.get("behavior", "Removed") != "Removed"


def _knows_all_bytes(
    engine: tokenizers.Tokenizer, cutters: list[dict[str, Any]], vocabulary: Mapping[str, int]
) -> bool:
    """Return whether no character is unknown to the vocabulary: unknown ones may be dropped, or fused into one."""
    if any(part["type"] == "ByteLevel" for part in cutters):
        return vocabulary.keys() >= BYTE_SPELLING.keys()
    return bool(getattr(engine.model, "byte_fallback", False)) and vocabulary.keys() >= BYTES
