"""Tokenizer files that ask for what is not byte-level BPE, or do not hold together: one line that names the fault."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.hf import from_folder

from made_tokenizers import RULES, as_gguf, save, train


def added(text: str, id: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": id, "content": text} | flags


def split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


TOKENIZER_JSON = {
    "dropout": ({"model.dropout": 0.1}, "model dropout 0.1 is not supported"),
    "no vocabulary": ({"model.vocab": {}, "model.merges": [], "added_tokens": []}, "the vocabulary is empty"),
    "shared id": (
        {"model.vocab": {"a": 0, "b": 0}, "model.merges": [], "added_tokens": []},
        "two tokens of the vocabulary share an id",
    ),
    "id no number": ({"model.vocab": {"a": "0"}}, 'invalid type: string "0"'),
    "list for vocabulary": ({"model.vocab": ["a"]}, "expected a map"),
    "surrogate": ({"added_tokens": [added("\ud800", 0)]}, "hex escape"),
    "no model": ({"model": None}, "did not match any variant of untagged enum Model"),
    "merge of no token": ({"model.merges": [["q", "\u0120"]]}, "Token `q\u0120` out of vocabulary"),
    "merge of three": ({"model.merges": ["a b c"]}, "Merges text file invalid at line 1"),
    "merge of one": ({"model.merges": [["a"]]}, "did not match any variant of untagged enum Merge"),
    "bad pattern": ({"pre_tokenizer": split("(", "Isolated")}, "Oniguruma error: end pattern with unmatched parenth"),
    "no such stage": ({"pre_tokenizer": {"type": "Unheard"}}, "untagged enum PreTokenizer"),
    "decoder of whole words": ({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "decoder 'BPEDecoder'"),
    "an id that is not next": ({"added_tokens": [added("<x>", 7000)]}, r"'<x>' has id 7000, but \d+ is the one"),
}


@pytest.fixture(scope="module")
def plain() -> str:
    return train(RULES["gpt-2"]).to_str()


@pytest.mark.parametrize(("changes", "message"), TOKENIZER_JSON.values(), ids=TOKENIZER_JSON.keys())
def test_tokenizer_json(tmp_path: Path, plain: str, changes: dict[str, Any], message: str) -> None:
    data = json.loads(plain)
    for place, value in changes.items():
        target, _, field = place.rpartition(".")
        (data[target] if target else data)[field] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


CONFIGS = {
    "unknown bos": ({"bos_token": "<what>"}, "tokenizer_config.json: bos_token '<what>' is not in the vocabulary"),
    "unknown eos": ({"eos_token": {"content": "<what>"}}, "eos_token '<what>' is not in the vocabulary"),
    "template no text": ({"chat_template": 5}, "chat_template must be text, not int"),
    "added no dict": ({"added_tokens_decoder": ["1"]}, "malformed tokenizer files"),
    "added no id": ({"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder must be keyed by token ids"),
}


@pytest.mark.parametrize(("config", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_tokenizer_config(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_folder(save(train(RULES["gpt-2"]), tmp_path, **config))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer that can be used: EOF"),
        ({"tokenizer.json": "[]"}, "tokenizer.json: not a tokenizer that can be used: invalid type: sequence"),
        ({"tokenizer.json": "[" * 100_000}, "tokenizer.json: not a tokenizer that can be used"),
        ({"tokenizer.json": b"\xff\xfe\x00"}, "tokenizer.json: not a tokenizer that can be used"),
        ({"tokenizer_config.json": "nonsense"}, "tokenizer_config.json: not valid JSON"),
        ({"vocab.json": "{}"}, "vocab.json and merges.txt belong together"),
        ({"merges.txt": ""}, "vocab.json and merges.txt belong together"),
        ({"vocab.json": "{}", "merges.txt": ""}, "vocab.json: the vocabulary is empty"),
        ({"vocab.json": '{"a": 0}', "merges.txt": b"\xff"}, "merges.txt: not UTF-8"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", "chat_template.jinja": b"\xff"},
            "chat_template.jinja: not UTF-8",
        ),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'},
            "tokenizer_class 'Qwen2Tokenizer' needs a tokenizer.json",
        ),
    ],
    ids=[
        *("cut short", "no object", "too deep", "no utf-8", "config", "vocab alone", "merges alone", "both empty"),
        *("merges no utf-8", "template no utf-8", "other class"),
    ],
)
def test_files(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        from_folder(tmp_path)
    assert str(tmp_path) + os.sep in str(caught.value) or str(tmp_path) + ":" in str(caught.value)


def test_a_folder_without_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert from_folder(tmp_path) is None


GGUF = {
    "word pieces": ({"model": "bert"}, "tokenizer.ggml.model 'bert' is not supported"),
    "no scores": ({"model": "llama"}, "tokenizer.ggml.scores must be a list of float"),
    "scores too few": ({"model": "llama", "scores": [0.0]}, r"\d+ tokenizer.ggml.tokens but 1 of scores"),
    "pre": ({"pre": "of-tomorrow"}, "tokenizer.ggml.pre 'of-tomorrow' is not supported"),
    "pre a list": ({"pre": ["gpt-2"]}, r"tokenizer.ggml.pre \['gpt-2'\] is not supported"),
    "no tokens": ({"tokens": None}, "tokenizer.ggml.tokens must be a list of str"),
    "tokens no text": ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of str"),
    "types too few": ({"token_type": [1]}, r"\d+ tokenizer.ggml.tokens but 1 of token_type"),
    "no merges": ({"merges": None}, "tokenizer.ggml.merges must be a list of str"),
    "merge no pair": ({"merges": ["ab"]}, "tokenizer.ggml.merges: 'ab' is not a pair"),
    "merge of no token": ({"merges": ["q Ġ"]}, "Token `qĠ` out of vocabulary"),
    "bos outside": ({"bos_token_id": 10**9}, "tokenizer.ggml.bos_token_id 1000000000 is outside the vocabulary"),
    "eos negative": ({"eos_token_id": -1}, "tokenizer.ggml.eos_token_id -1 is outside the vocabulary"),
}


@pytest.mark.parametrize(("changes", "message"), GGUF.values(), ids=GGUF.keys())
def test_gguf(changes: dict[str, Any], message: str) -> None:
    metadata = as_gguf(train(RULES["gpt-2"]), "gpt-2") | {
        f"tokenizer.ggml.{key}": value for key, value in changes.items()
    }
    with pytest.raises(ValueError, match=message) as caught:
        from_gguf_metadata(metadata, "model.gguf")
    assert str(caught.value).startswith("model.gguf: ")


def test_gguf_chat_template_no_text() -> None:
    with pytest.raises(ValueError, match=r"model.gguf: tokenizer.chat_template must be text, not list"):
        from_gguf_metadata(as_gguf(train(RULES["gpt-2"]), "gpt-2") | {"tokenizer.chat_template": []}, "model.gguf")


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_gguf_without_a_tokenizer(model: str | None) -> None:
    assert from_gguf_metadata({"tokenizer.ggml.model": model}) is None
