"""Tokenizer files that ask for what is not byte-level BPE, or do not hold together: one line that names the fault."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.hf import from_folder

from made_tokenizers import RULES, as_gguf, save, train

MERGES = [["t", "h"], ["th", "e"]]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def sequence(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(stages)}


def split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def template(*single: str) -> dict[str, Any]:
    parts = [{"Sequence": {"id": "A"}} if part == "$A" else {"SpecialToken": {"id": part}} for part in single]
    return {"type": "TemplateProcessing", "single": parts, "special_tokens": {"<s>": {"ids": [0]}}}


TOKENIZER_JSON = {
    "unigram": ({"model.type": "Unigram"}, "model type 'Unigram' is not supported"),
    "dropout": ({"model.dropout": 0.1}, "model dropout 0.1"),
    "prefix": ({"model.continuing_subword_prefix": "##"}, "model continuing_subword_prefix '##'"),
    "suffix": ({"model.end_of_word_suffix": "</w>"}, "model end_of_word_suffix '</w>'"),
    "byte fallback": ({"model.byte_fallback": True}, "model byte_fallback True"),
    "no such unk": ({"model.unk_token": "<nothing>"}, "malformed tokenizer files .*<nothing>"),
    "no vocabulary": ({"model.vocab": {}}, "no token stands for a byte"),
    "shared id": ({"model.vocab": {"a": 0, "b": 0}}, "each by an integer of its own"),
    "id no number": ({"model.vocab": {"a": "0"}}, "each by an integer of its own"),
    "list for vocabulary": ({"model.vocab": ["a"]}, "malformed tokenizer files"),
    "surrogate": ({"added_tokens": [{"id": 0, "content": "\ud800"}]}, "malformed tokenizer files .*surrogates"),
    "no model": ({"model": None}, "malformed tokenizer files"),
    "merge too early": ({"model.merges": MERGES[::-1]}, "merge 0 joins 'th' and 'e' before both are built"),
    "merge of no token": ({"model.merges": [["q", "\u0120"]]}, "merge 0 makes 'q\u0120', which is no token"),
    "merge of three": ({"model.merges": ["a b c"]}, "'a b c' is not a pair of tokens"),
    "merge of one": ({"model.merges": [["a"]]}, "'a' is not a pair of tokens"),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "pre_tokenizer None is not supported"),
    "metaspace": ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer 'Metaspace'"),
    "prefix space": ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "ByteLevel with add_prefix_space"),
    "split after bytes": ({"pre_tokenizer": sequence(BYTE_LEVEL, split(".", "Isolated"))}, "'ByteLevel \\+ Split'"),
    "split removes": (
        {"pre_tokenizer": sequence(split(" ", "Removed"), BYTE_LEVEL)},
        "'Split' with behavior 'Removed'",
    ),
    "bad pattern": (
        {"pre_tokenizer": sequence(split("(", "Isolated"), BYTE_LEVEL)},
        "pre_tokenizer Split: missing \\)",
    ),
    "post-processor": ({"post_processor": {"type": "RobertaProcessing"}}, "post_processor 'RobertaProcessing'"),
    "adds eos": ({"post_processor": template("<s>", "$A", "<s>")}, "'TemplateProcessing' that adds more than BOS"),
    "single word": ({"added_tokens": [{"id": 0, "content": "<s>", "single_word": True}]}, "'<s>' asks for single_word"),
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
    "eos after prompts": ({"add_eos_token": True}, "tokenizer_config.json: add_eos_token is not supported"),
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
        ({"tokenizer.json": "{"}, "tokenizer.json: not valid JSON"),
        ({"tokenizer.json": "[]"}, "tokenizer.json: not a JSON object"),
        ({"tokenizer.json": "[" * 100_000}, "tokenizer.json: not valid JSON"),
        ({"tokenizer.json": b"\xff\xfe\x00"}, "tokenizer.json: not valid JSON"),
        ({"tokenizer_config.json": "nonsense"}, "tokenizer_config.json: not valid JSON"),
        ({"vocab.json": "{}"}, "vocab.json and merges.txt belong together"),
        ({"merges.txt": ""}, "vocab.json and merges.txt belong together"),
        ({"vocab.json": "{}", "merges.txt": ""}, "vocab.json: no token stands for a byte"),
        ({"vocab.json": '{"a": 0}', "merges.txt": b"\xff"}, "merges.txt: not UTF-8"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", "chat_template.jinja": b"\xff"},
            "chat_template.jinja: not UTF-8",
        ),
        ({"tokenizer.model": ""}, "tokenizer.model: sentencepiece is not supported"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'},
            "tokenizer_class 'Qwen2Tokenizer' needs a tokenizer.json",
        ),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"add_prefix_space": true}'},
            "add_prefix_space is not supported",
        ),
    ],
    ids=[
        *("cut short", "no object", "too deep", "no utf-8", "config", "vocab alone", "merges alone", "both empty"),
        *("merges no utf-8", "template no utf-8", "sentencepiece", "other class", "prefix space"),
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
    "sentencepiece": ({"model": "llama"}, "tokenizer.ggml.model 'llama' is not supported"),
    "pre": ({"pre": "default"}, "tokenizer.ggml.pre 'default' is not supported"),
    "pre a list": ({"pre": ["gpt-2"]}, r"tokenizer.ggml.pre \['gpt-2'\] is not supported"),
    "no pre": ({"pre": None}, "tokenizer.ggml.pre None is not supported"),
    "adds eos": ({"add_eos_token": True}, "add_eos_token is not supported"),
    "no tokens": ({"tokens": None}, "tokenizer.ggml.tokens must be a list of str"),
    "tokens no text": ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of str"),
    "types too few": ({"token_type": [1]}, r"\d+ tokenizer.ggml.tokens but 1 of token_type"),
    "no merges": ({"merges": None}, "tokenizer.ggml.merges must be a list of str"),
    "merge no pair": ({"merges": ["ab"]}, "tokenizer.ggml.merges: 'ab' is not a pair"),
    "merge too early": ({"merges": ["th e", "t h"]}, "merge 0 joins 'th' and 'e' before both are built"),
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
