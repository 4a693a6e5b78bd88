"""Mistral's own files: `tekken.json`, and SentencePiece models, read by the `sentencepiece` package.

tekken.json is tiktoken's kind of BPE: a pattern, and tokens in the order of their ranks behind the control tokens.
https://github.com/mistralai/mistral-common
"""

import base64
import binascii
import importlib
import re
import struct
from pathlib import Path
from typing import Any

import tokenizers

from octavo.gpt.loading.files import is_folder, is_there, read_json, read_whole
from octavo.gpt.quoting import one_line
from octavo.gpt.tokenizer.engine import build
from octavo.gpt.tokenizer.gguf import SPACE, merges_by_score, sentencepiece_engine
from octavo.gpt.tokenizer.ranks import from_ranks
from octavo.gpt.tokenizer.tokenizer import Tokenizer

PROBES = (
    "",
    "a",
    " " * 31 + "a" + " " * 15,
    " a  b ",
    "\n\t",
    "\ufb01\u2460",
    "e\u0301",
)  # what other kinds drop, fold or compose
PROBED = 1000  # pieces of the vocabulary that are read as one text

SENTENCEPIECE = re.compile(r".+\.model(\.v\d+(m\d+)?)?")
NAMES = re.compile(r"tekken.*\.json|(tokenizer|mistral).*\.model(\.v\d+(m\d+)?)?")


def is_its_file(path: Path) -> bool:
    return path.name.startswith("tekken") or SENTENCEPIECE.fullmatch(path.name) is not None


def from_folder(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder that holds such a file, None where it holds none; the last of several."""
    try:
        names = sorted(path.name for path in folder.iterdir() if NAMES.fullmatch(path.name))
    except OSError:
        names = []
    found = [name for name in names if is_there(folder / name) and not is_folder(folder / name)]
    tekken = [name for name in found if name.startswith("tekken")]
    return from_file(folder / (tekken or found)[-1]) if found else None


def from_file(path: Path) -> Tokenizer:
    """Return the tokenizer of one of the files. A ValueError names it, and the extra to install where one is needed."""
    try:
        return _tekken(path) if path.name.startswith("tekken") else _sentencepiece(path)
    except (TypeError, KeyError, AttributeError, IndexError, binascii.Error) as error:  # a field of a wrong shape
        raise ValueError(f"{path}: malformed ({type(error).__name__}: {one_line(str(error), 80)})") from None


def _tekken(path: Path) -> Tokenizer:
    data = read_json(path)
    config, listed = data["config"], data.get("special_tokens")
    number, size = config["default_num_special_tokens"], config["default_vocab_size"]
    known = {entry["rank"]: entry["token_str"] for entry in listed or _oldest_control_tokens()}
    control = [known.get(id, f"<SPECIAL_{id}>") for id in range(number)]
    ranks = [base64.b64decode(entry["token_bytes"], validate=True) for entry in data["vocab"][: size - number]]
    tokens = {token: number + rank for rank, token in enumerate(ranks)}

    def make() -> tokenizers.Tokenizer:
        return from_ranks(tokens, (config["pattern"],), control)

    engine = build(str(path), make)
    return _with_control(engine, path, control)


def _oldest_control_tokens() -> list[dict[str, Any]]:
    """The control tokens of the files that do not list theirs."""
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
    more = "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"
    last = "[TOOL_CONTENT]"
    return [{"rank": rank, "token_str": name} for rank, name in enumerate(f"{names} {more} {last}".split())]


def _sentencepiece(path: Path) -> Tokenizer:
    try:
        package = importlib.import_module("sentencepiece")
    except ImportError:
        raise ValueError(f"{path}: a SentencePiece model: pip install 'octavo[mistral]' to read it") from None
    try:
        model = package.SentencePieceProcessor(model_proto=read_whole(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a SentencePiece model ({one_line(str(error), 80)})") from None
    size = model.vocab_size()
    tokens = {model.id_to_piece(id): id for id in range(size)}
    control = [model.id_to_piece(id) for id in range(size) if model.is_control(id) or model.is_unknown(id)]
    plain = {
        token: id
        for token, id in tokens.items()
        if not (model.is_control(id) or model.is_unknown(id) or model.is_byte(id) or model.is_unused(id))
    }
    proto = model.serialized_model_proto()
    defined = [token for token, id in plain.items() if _is_user_defined(proto, token, model.get_score(id))]
    plain = {token: id for token, id in plain.items() if token not in defined}
    merges = merges_by_score(plain, [model.get_score(id) for id in range(size)])
    engine = sentencepiece_engine(str(path), tokens, merges, prefix=True, unk_id=model.unk_id())
    engine.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in defined])
    tokenizer = _with_control(engine, path, control)
    for text in (*PROBES, "".join([*plain][:PROBED]).replace(SPACE, " ")):
        if tokenizer.encode(text) != model.encode(text):
            raise ValueError(f"{path}: a SentencePiece model of another kind than byte-fallback BPE of text as it is")
    return tokenizer


def _is_user_defined(proto: bytes, token: str, score: float) -> bool:
    """Whether the model's message holds this piece with type 4, which the package does not tell.

    A piece is a message of its text (field 1), its score (2) and its type (3).
    """
    text = token.encode()
    if score != 0 or len(text) > 127:  # those that users define have no score, and longer ones a longer length
        return False
    return b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18\x04" in proto


def _with_control(engine: tokenizers.Tokenizer, path: Path, control: list[str]) -> Tokenizer:
    engine.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in control])
    bos_id, eos_id = engine.token_to_id("<s>"), engine.token_to_id("</s>")
    starts = () if bos_id is None else (bos_id,)
    return Tokenizer(engine, str(path), bos_id=bos_id, eos_ids=() if eos_id is None else (eos_id,), before=starts)
