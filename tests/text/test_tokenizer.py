"""SmolLM2's tokenizer against Hugging Face's `tokenizers`, told the model's own rule: same ids, same text."""

from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.gpt.loading.gguf_file import open_gguf
from octavo.gpt.tokenizer.detokenizer import TextStream
from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from hard_text import CORPUS, FRAGMENTS, TEXTS
from made_tokenizers import smollm2_oracle

pytestmark = pytest.mark.model
FUZZ = settings(max_examples=400, deadline=None)


@pytest.fixture(scope="module")
def metadata(smollm2_path: Path) -> dict:
    return open_gguf(smollm2_path).metadata


@pytest.fixture(scope="module")
def tokenizer(metadata: dict) -> Tokenizer:
    tokenizer = from_gguf_metadata(metadata)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def oracle(metadata: dict) -> tokenizers.Tokenizer:
    return smollm2_oracle(metadata)


@cache
def bytes_without_token(tokenizer: Tokenizer) -> bytes:
    known = {tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
    return bytes(byte for byte in range(256) if bytes([byte]) not in known)


def dropped(tokenizer: Tokenizer, text: str) -> str:
    """The text without the bytes that the vocabulary has no token for."""
    return text.encode().translate(None, bytes_without_token(tokenizer)).decode("utf-8", "replace")


def test_facts(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, 2, (2,), False)
    assert tokenizer.specials["<|im_start|>"] == 1
    assert len(tokenizer.specials) == 17
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS.keys())
def test_hard_strings(tokenizer: Tokenizer, oracle: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text).ids
    assert tokenizer.decode(ids) == dropped(tokenizer, text)


def test_any_text(tokenizer: Tokenizer, oracle: tokenizers.Tokenizer) -> None:
    @FUZZ
    @given(TEXTS)
    def check(text: str) -> None:
        assert tokenizer.encode(text) == oracle.encode(text).ids

    check()


def test_any_ids(tokenizer: Tokenizer, oracle: tokenizers.Tokenizer) -> None:
    @FUZZ
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    def check(ids: list[int]) -> None:
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=False)

    check()


@pytest.mark.parametrize("unit", ["a", " ", "\n", "!", "1", "中", "😀", " a", "'", "\x04", "\x04a", "\t1"])
@pytest.mark.parametrize("end", ["", "x", "1"])
def test_long_runs_are_encoded_whole(tokenizer: Tokenizer, oracle: tokenizers.Tokenizer, unit: str, end: str) -> None:
    text = unit * (250_000 // len(unit)) + end
    assert tokenizer.encode(text) == oracle.encode(text).ids


def test_a_million_spaces_before_a_word(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(" " * 1_000_000 + "x")) == " " * 1_000_000 + "x"


def test_special_text_in_a_prompt_is_text(tokenizer: Tokenizer) -> None:
    text = "".join(tokenizer.specials)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_ids_decode_and_can_be_skipped(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("hi"), 2]
    assert tokenizer.decode(ids) == "<|im_start|>hi<|im_end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(504)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"bytes", "text must be a str, not bytes"),
        (None, "text must be a str, not NoneType"),
        ("ab\ud800c", r"lone surrogate, U\+D800, at position 2"),
        ("\udfff", r"U\+DFFF, at position 0"),
    ],
    ids=["bytes", "none", "high surrogate", "low surrogate"],
)
def test_bad_text(tokenizer: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(text)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 49152], "token id 49152 is outside the vocabulary of 49152"),
        ([-1], "token id -1 is outside the vocabulary of 49152"),
        ([2**70], "outside the vocabulary of 49152"),
        ([1.0], "a token id must be an integer, not 1.0"),
        ("12", "a token id must be an integer, not '1'"),
        (7, "ids must be a list of token ids, not int"),
    ],
    ids=["one past", "negative", "huge", "float", "text", "number"],
)
def test_bad_ids(tokenizer: Tokenizer, ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(ids)


def stream(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
    text = TextStream(tokenizer, skip_special_tokens=skip_special_tokens)
    return [*(text.push(id, number) for number, id in enumerate(ids, start=1)), text.flush()]


@pytest.mark.parametrize("skip", [False, True], ids=["all", "no specials"])
def test_stream_adds_up(tokenizer: Tokenizer, skip: bool) -> None:
    @FUZZ
    @given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, tokenizer.vocab_size - 1)), max_size=30))
    def check(ids: list[int]) -> None:
        assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)

    check()


@pytest.mark.parametrize("text", [*CORPUS.values(), "".join(FRAGMENTS)], ids=[*CORPUS, "fragments"])
def test_stream_never_breaks_a_character(tokenizer: Tokenizer, text: str) -> None:
    text = dropped(tokenizer, text).replace("\ufffd", "")
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_holds_back_bytes_until_the_character_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")
    assert len(ids) == 3
    assert stream(tokenizer, ids) == ["", "", "😀", ""]
    assert stream(tokenizer, ids[:2]) == ["", "", "\ufffd"]
