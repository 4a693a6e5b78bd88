"""Tokenizers read from files that Hugging Face's libraries wrote, against those libraries: same ids, same text."""

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import decoders, models, normalizers
from transformers import GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.hf import from_folder
from octavo.gpt.tokenizer.pretokenizer import PRE, cutter
from octavo.gpt.tokenizer.ranks import gpt2
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from hard_text import CORPUS, TEXTS
from made_tokenizers import RULES, as_gguf, save, train

FUZZ = settings(max_examples=150, deadline=None)
BYTE_SPELLING = bytes_to_unicode()


def renumbered(trained: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with its ids in another order than its merges."""
    data = json.loads(trained.to_str())
    vocab, size = data["model"]["vocab"], len(data["model"]["vocab"])
    data["model"]["vocab"] = {token: (id * 37 + 11) % size for token, id in vocab.items()}
    for entry in data["added_tokens"]:
        entry["id"] = data["model"]["vocab"][entry["content"]]
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def with_model(trained: tokenizers.Tokenizer, **fields: Any) -> tokenizers.Tokenizer:
    data = json.loads(trained.to_str())
    data["model"] |= fields
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def assert_same(ours: Tokenizer | None, oracle: tokenizers.Tokenizer) -> None:
    """Ids and text agree on the hard strings and on any others; text that spells special tokens is text."""
    assert ours is not None
    oracle.encode_special_tokens = True

    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=False)

    for text in CORPUS.values():
        check(text)
    FUZZ(given(TEXTS)(check))()
    assert ours.vocab_size == oracle.get_vocab_size()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_tokenizer_json(tmp_path: Path, rule: Any) -> None:
    trained = train(rule)
    assert_same(from_folder(save(trained, tmp_path)), trained)


VARIANTS = {
    "ids not in merge order": lambda: renumbered(train(RULES["gpt-2"])),
    "ignore_merges": lambda: with_model(train(RULES["llama-bpe"]), ignore_merges=True),
    "bytes without token": lambda: train(RULES["smollm"], whole_alphabet=False),
    "unknown token": lambda: train(RULES["gpt-2"], whole_alphabet=False, unk_token="<s>"),
    "unknown tokens fused": lambda: train(RULES["gpt-2"], whole_alphabet=False, unk_token="<s>", fuse_unk=True),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants(tmp_path: Path, make: Any) -> None:
    trained = make()
    assert_same(from_folder(save(trained, tmp_path)), trained)


@pytest.mark.parametrize("ignore_merges", [True, False])
def test_tokens_that_no_merge_builds(tmp_path: Path, ignore_merges: bool) -> None:
    trained = train(RULES["llama-bpe"])
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    size = len(vocab)
    oracle = with_model(trained, ignore_merges=ignore_merges, vocab=vocab | {"Ġunmergeable": size, "Ã©tÃ©": size + 1})
    ours = from_folder(save(oracle, tmp_path))
    assert_same(ours, oracle)
    assert ours.encode("so unmergeable été") == oracle.encode("so unmergeable été").ids
    assert (size in ours.encode(" unmergeable")) == ignore_merges
    assert size not in ours.encode(" unmergeables")
    assert ours.decode([size, size + 1]) == " unmergeableété"


def test_normal_form_c(tmp_path: Path) -> None:
    trained = train(RULES["qwen2"])
    trained.normalizer = normalizers.NFC()
    ours = from_folder(save(trained, tmp_path))
    for text in ("e\u0301", "\u212b", "\u1112\u1161\u11ab", CORPUS["combining"]):
        assert ours.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize("strips", [{}, {"lstrip": True}, {"rstrip": True}], ids=["plain", "lstrip", "rstrip"])
def test_added_tokens_are_found_in_any_text(tmp_path: Path, strips: dict[str, bool]) -> None:
    trained = train(RULES["gpt-2"])
    trained.add_tokens([tokenizers.AddedToken(text, **strips) for text in ("<tool>", "<tool>>", "  ", "the")])
    ours = from_folder(save(trained, tmp_path))
    assert_same(ours, trained)
    assert "<tool>" not in ours.specials
    text = "a  <tool>>\n <tool> <tool>  the<|im_end|>\x1d<tool>\x1d \x1d <tool> \x1d"
    assert ours.encode(text) == trained.encode(text).ids
    assert set(ours.encode(text)) >= {trained.token_to_id("<tool>"), trained.token_to_id("the")}


def test_vocab_and_merges(tmp_path: Path) -> None:
    model = json.loads(train(RULES["gpt-2"]).to_str())["model"]
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    saved = GPT2Tokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    ours = from_folder(tmp_path)
    assert_same(ours, saved.backend_tokenizer)
    assert ours.bos_id == ours.eos_id == saved.eos_token_id == len(vocab) - 1
    assert not ours.add_bos


def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    model = json.loads(train(RULES["gpt-2"]).to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    saved = GPT2Tokenizer(vocab=model["vocab"], merges=merges, bos_token="<s>", eos_token="<|im_end|>")
    saved.chat_template = "{{ messages[0].content }}"
    saved.save_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert_same(ours, saved.backend_tokenizer)
    assert (ours.bos_id, ours.eos_id) == (saved.bos_token_id, saved.eos_token_id)
    assert ours.chat_template == saved.chat_template


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_pieces(pre: str) -> None:
    def check(text: str) -> None:
        pieces = [piece for piece, _ in cutter(PRE[pre].splits).pre_tokenize_str(text)]
        assert pieces == [text[start:end] for _, (start, end) in RULES[pre].pre_tokenize_str(text)]

    for text in CORPUS.values():
        check(text)
    FUZZ(given(TEXTS)(check))()


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_gguf(pre: str) -> None:
    trained = train(RULES[pre])
    trained.normalizer = normalizers.NFC() if pre == "qwen2" else None
    ours = from_gguf_metadata(as_gguf(trained, pre))
    trained.add_tokens(["<tool>"])
    assert_same(ours, trained)
    assert ours.specials == {"<s>": 0, "<|im_end|>": 1}
    assert ours.encode("<tool>") == [ours.vocab_size - 1]
    assert ours.add_bos == (pre in ("llama-bpe", "tekken"))
    assert not from_gguf_metadata(as_gguf(trained, pre) | {"tokenizer.ggml.add_bos_token": False}).add_bos


def test_what_a_gguf_leaves_to_its_kind() -> None:
    """Qwen composes text first; Llama 3 takes a whole token that no merge builds."""
    qwen = from_gguf_metadata(as_gguf(train(RULES["qwen2"]), "qwen2"))
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9") != []
    llama = as_gguf(train(RULES["llama-bpe"]), "smaug-bpe")
    llama["tokenizer.ggml.tokens"].append("zqx")
    llama["tokenizer.ggml.token_type"].append(1)
    assert from_gguf_metadata(llama).encode("zqx") == [len(llama["tokenizer.ggml.tokens"]) - 1]


def test_gguf_without_bos_adds_none() -> None:
    metadata = as_gguf(train(RULES["llama-bpe"]), "llama-bpe")
    del metadata["tokenizer.ggml.bos_token_id"]
    ours = from_gguf_metadata(metadata)
    assert ours.bos_id is None
    assert not ours.add_bos


def test_gguf_ends_of_turn() -> None:
    metadata = as_gguf(train(RULES["gpt-2"]), "gpt-2")
    ours = from_gguf_metadata(metadata | {"tokenizer.ggml.eot_token_id": 300, "tokenizer.ggml.eom_token_id": 1})
    assert ours.eos_id == 1
    assert ours.eos_ids == (1, 300)
    assert ours.is_special(300)


def merges_behind(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """For each token the pair that its own bytes come down to when only lower ranks may merge."""
    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            at = pairs.index(min(pairs))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            left, right = ("".join(BYTE_SPELLING[byte] for byte in part) for part in parts)
            merges.append((left, right))
    return merges


@pytest.mark.model
def test_gpt2_vocabulary(gpt2_vocabulary_path: Path) -> None:
    ours = gpt2(gpt2_vocabulary_path)
    lines = gpt2_vocabulary_path.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    vocab = {"".join(BYTE_SPELLING[byte] for byte in token): rank for token, rank in ranks.items()}
    oracle = tokenizers.Tokenizer(models.BPE(vocab=vocab | {"<|endoftext|>": 50256}, merges=merges_behind(ranks)))
    oracle.pre_tokenizer, oracle.decoder = RULES["gpt-2"], decoders.ByteLevel()
    assert_same(ours, oracle)
    assert ours.encode("Hello world") == [15496, 995]
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids, ours.add_bos) == (50257, 50256, (50256,), False)
    assert ours.decode([50256]) == "<|endoftext|>"


def ranks_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)] + [*lines]))
    return path


def test_a_small_file_of_ranks(tmp_path: Path) -> None:
    ours = gpt2(ranks_file(tmp_path / "small.tiktoken", "YWI= 256", "YWJj 257"))
    assert ours.encode("abcab") == [257, 256]
    assert ours.eos_id == 258


@pytest.mark.parametrize("line", ["YWI=", "YWI= 256 1", "YWI= x", "Y* 256", "YWI= 300", "YQ== 256 "], ids=repr)
def test_a_broken_file_of_ranks(tmp_path: Path, line: str) -> None:
    path = ranks_file(tmp_path / "broken.tiktoken", line)
    with pytest.raises(ValueError, match=r"broken\.tiktoken"):
        gpt2(path)


def test_an_empty_file_of_ranks(tmp_path: Path) -> None:
    (tmp_path / "empty.tiktoken").touch()
    with pytest.raises(ValueError, match="not the ranks of a byte-level BPE"):
        gpt2(tmp_path / "empty.tiktoken")
