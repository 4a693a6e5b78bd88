"""Byte-level BPE by ranks, as tiktoken keeps it: any two parts that join to a token merge, the lowest rank first."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models

from octavo.gpt.loading.files import read_whole
from octavo.gpt.tokenizer.engine import all_merges
from octavo.gpt.tokenizer.pretokenizer import PRE, byte_level
from octavo.gpt.tokenizer.token_bytes import BYTE_SPELLING
from octavo.gpt.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"

_SPELLING = {byte: char for char, byte in BYTE_SPELLING.items()}


def gpt2(path: Path) -> Tokenizer:
    """Return plain GPT-2 BPE from a file of ranks, a line each: the token's bytes in base64, its rank, which is its id.

    `<|endoftext|>` has the id after the last rank.
    """
    tokens: dict[bytes, int] = {}
    for number, line in enumerate(read_whole(path).splitlines(), start=1):
        try:
            token, rank = line.split()
            tokens[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: not a token in base64 and its rank") from None
    all_bytes = {bytes([byte]) for byte in range(256)} <= tokens.keys()
    if list(tokens.values()) != list(range(len(tokens))) or not all_bytes:
        raise ValueError(f"{path}: not the ranks of a byte-level BPE (truncated download?)")
    engine = from_ranks(tokens, PRE["gpt-2"].splits)
    engine.add_special_tokens([END_OF_TEXT])
    return Tokenizer(engine, str(path), bos_id=len(tokens), eos_ids=(len(tokens),))


def from_ranks(
    tokens: Mapping[bytes, int], splits: tuple[str, ...], control: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    """Return the engine that merges as tiktoken does: every cut of a token in two tokens is a merge, in rank order.

    control: the tokens that have the ids from 0.
    """
    spelled = {_spelled(token): id for token, id in tokens.items()}
    vocabulary = {text: id for id, text in enumerate(control)} | spelled
    engine = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[*all_merges(spelled)], ignore_merges=True))
    engine.pre_tokenizer, engine.decoder = byte_level(splits)
    return engine


def _spelled(token: bytes) -> str:
    return "".join(map(_SPELLING.__getitem__, token))
