"""The most characters of a text that one token stands for, so that a text far too long is refused before it is cut."""

from collections.abc import Mapping
from typing import Any

import tokenizers

from octavo.gpt.tokenizer.token_bytes import BYTE_SPELLING, stages

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
