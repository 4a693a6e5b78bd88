"""Tokenizers from a GGUF's metadata and from GPT-2's ranks; `make_tokenizer` serves Hugging Face folders too.

Byte-level tokens are spelled with one printable character for each byte; merges stand in the order they apply, and ids
need not follow it. What asks for anything but byte-level BPE is refused by the name of what it asks for.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from octavo.gpt.loading.files import read_whole
from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.pretokenizer import DIGIT, GPT2, LLAMA3, QWEN2, TEKKEN, AddedToken
from octavo.gpt.tokenizer.template_files import gguf_templates
from octavo.gpt.tokenizer.tokenizer import Tokenizer, Vocabulary

END_OF_TEXT = "<|endoftext|>"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_SPELLING = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_UNSPELL = dict.fromkeys(_OTHERS, 0xFFFF) | {ord(char): byte for char, byte in BYTE_SPELLING.items()}


class PreTokenizer(NamedTuple):
    """What a GGUF's `tokenizer.ggml.pre` stands for."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False  # where the file does not say


_GPT2, _SMOLLM = PreTokenizer((GPT2,)), PreTokenizer((DIGIT, GPT2))
_LLAMA3 = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)
PRE = {
    **dict.fromkeys(("gpt-2", "phi-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SMOLLM),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), PreTokenizer((QWEN2,))),
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True),
}


def from_gguf_metadata(metadata: Mapping[str, Any], source: str = "GGUF") -> Tokenizer | None:
    """Return the tokenizer of a GGUF file, None if it has none. ValueErrors begin with `source`, the file's name."""
    model = metadata.get("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return None
    if model != "gpt2":
        raise ValueError(
            f"{source}: tokenizer.ggml.model {quoted(model)} is not supported, only 'gpt2' (byte-level BPE)"
        )
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE:
        raise ValueError(f"{source}: tokenizer.ggml.pre {quoted(name)} is not supported, only {', '.join(PRE)}")
    if metadata.get("tokenizer.ggml.add_eos_token"):
        raise ValueError(f"{source}: tokenizer.ggml.add_eos_token is not supported")
    tokens = _gguf_list(metadata, "tokens", str, source)
    types = _gguf_list(metadata, "token_type", int, source) if "tokenizer.ggml.token_type" in metadata else []
    if types and len(types) != len(tokens):
        raise ValueError(f"{source}: {len(tokens)} tokenizer.ggml.tokens but {len(types)} of token_type")
    kinds = types or [NORMAL] * len(tokens)
    bos_id, *eos_ids = (_gguf_id(metadata, key, len(tokens), source) for key in ("bos", "eos", "eot", "eom"))
    special = {id for id, kind in enumerate(kinds) if kind == CONTROL} | {bos_id, *eos_ids}
    return make_tokenizer(
        source,
        dict(enumerate(tokens)),
        [
            split_merge(merge, f"{source}: tokenizer.ggml.merges")
            for merge in _gguf_list(metadata, "merges", str, source)
        ],
        [
            AddedToken(token, id, id in special)
            for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if id in special or kind == USER_DEFINED
        ],
        ignore_merges=PRE[name].ignore_merges,
        splits=PRE[name].splits,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(id for id in eos_ids if id is not None)),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", PRE[name].add_bos)) and bos_id is not None,
        chat_template=gguf_templates(metadata, source),
    )


def _gguf_list(metadata: Mapping[str, Any], key: str, kind: type, source: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{source}: tokenizer.ggml.{key} must be a list of {kind.__name__}")
    return values


def _gguf_id(metadata: Mapping[str, Any], key: str, vocab_size: int, source: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is not None and not (isinstance(value, int) and 0 <= value < vocab_size):
        raise ValueError(
            f"{source}: tokenizer.ggml.{key}_token_id {quoted(value)} is outside the vocabulary of {vocab_size}"
        )
    return value


def gpt2(path: Path) -> Tokenizer:
    """Return plain GPT-2 BPE from a file of ranks, a line each: the token's bytes in base64, its rank, which is its id.

    `<|endoftext|>` has the id after the last rank.
    """
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(read_whole(path).splitlines(), start=1):
        try:
            token, rank = line.split()
            tokens[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: not a token in base64 and its rank") from None
    mergeable = {token: id for id, token in tokens.items()}
    all_bytes = {bytes([byte]) for byte in range(256)} <= mergeable.keys()
    if list(mergeable.values()) != list(range(len(tokens))) or not all_bytes:
        raise ValueError(f"{path}: not the ranks of a byte-level BPE (truncated download?)")
    end = AddedToken(END_OF_TEXT, len(tokens), special=True)
    facts = Vocabulary(
        tokens=tokens, mergeable=mergeable, splits=(GPT2,), added=(end,), bos_id=end.id, eos_ids=(end.id,)
    )
    return Tokenizer(facts)


def split_merge(merge: str, source: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(f"{source}: {quoted(merge)} is not a pair of tokens")
    return left, right


def make_tokenizer(
    source: str,
    tokens: Mapping[int, str],
    merges: Iterable[tuple[str, str]],
    added: Iterable[AddedToken],
    *,
    ignore_merges: bool = False,
    **facts: Any,
) -> Tokenizer:
    """Make a tokenizer from byte-level tokens (the added ones are plain text) and the other fields of a Vocabulary."""
    added = tuple(added)
    literal = {token.id for token in added}
    ids: dict[str, int] = {}
    for id, token in tokens.items():
        ids.setdefault(token, id)
    mergeable = _mergeable(source, ids, merges)
    by_id = {
        id: token.encode() if id in literal else from_byte_level(token) or token.encode()
        for id, token in tokens.items()
    }
    unbuilt = {token: id for id, token in by_id.items() if id not in literal and token not in mergeable}
    unmerged = unbuilt if ignore_merges else {}
    return Tokenizer(Vocabulary(tokens=by_id, mergeable=mergeable, unmerged=unmerged, added=added, **facts))


def from_byte_level(token: str) -> bytes | None:
    """Return the bytes that a byte-level token spells; None where a character stands for no byte."""
    try:
        return token.translate(_UNSPELL).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _mergeable(source: str, ids: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> dict[bytes, int]:
    built = {char: ids[char] for char in BYTE_SPELLING if char in ids}
    if not built:
        raise ValueError(f"{source}: no token stands for a byte, so this is no byte-level BPE")
    for number, (left, right) in enumerate(merges):
        if left not in built or right not in built:
            raise ValueError(f"{source}: merge {number} joins {quoted(left)} and {quoted(right)} before both are built")
        if left + right not in ids:
            raise ValueError(f"{source}: merge {number} makes {quoted(left + right)}, which is no token")
        built.setdefault(left + right, ids[left + right])
    return {token.translate(_UNSPELL).encode("latin-1"): id for token, id in built.items()}
