"""Vocabularies that models come with: llama.cpp's own cases, the tokenizers package and mistral-common as oracles."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import tokenizers

from octavo.gpt import load_tokenizer
from octavo.gpt.tokenizer.detokenizer import TextStream
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from real_files import FOLDER, PARTS_OF_CASES, hard_texts, real

REFUSED = {"ggml-vocab-bert-bge": "'bert'", "ggml-vocab-nomic-bert-moe": "'t5'"}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return hard_texts()


def found(part: str, pattern: str) -> list[Path]:
    return sorted((FOLDER / part).glob(pattern)) if FOLDER else []


def streamed(ours: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(ours, skip_special_tokens=False)
    return "".join(stream.push(id, number) for number, id in enumerate(ids, start=1)) + stream.flush()


def assert_same(
    ours: Tokenizer, texts: Iterable[str], ids_of: Callable[[str], list[int]], text_of: Callable[[list[int]], str]
) -> None:
    for text in texts:
        ids = ours.encode(text)
        assert ids == ids_of(text), repr(text)
        assert ours.decode(ids) == text_of(ids), repr(text)
        assert streamed(ours, ids) == ours.decode(ids, continues=True), repr(text)


def test_everything_was_fetched() -> None:
    parts = {"vocab": "*.gguf", "hf": "*/tokenizer.json", "mistral": "*"}
    assert {part: len(found(part, pattern)) for part, pattern in parts.items() if real(part)} == {
        "vocab": 19,
        "hf": 10,
        "mistral": 7,
    }


@pytest.mark.parametrize("path", found("vocab", "*.gguf"), ids=lambda path: path.stem)
def test_gguf_vocabularies(path: Path) -> None:
    if kind := REFUSED.get(path.stem):
        with pytest.raises(ValueError, match=f"tokenizer.ggml.model {kind} is not supported"):
            load_tokenizer(path)
        return
    ours, cases = load_tokenizer(path), Path(f"{path}.inp")
    if not cases.exists():
        assert ours.decode(ours.encode("Hello, world")) == "Hello, world"
        return
    rows = [list(map(int, line.split())) for line in Path(f"{path}.out").read_text().split("\n")]
    for text, ids in zip(cases.read_text("utf-8").split(PARTS_OF_CASES), rows, strict=False):
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == text


@pytest.mark.parametrize("path", found("hf", "*/tokenizer.json"), ids=lambda path: path.parent.name)
def test_tokenizer_json(path: Path, texts: list[str]) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(path))
    oracle.encode_special_tokens = True
    assert_same(
        load_tokenizer(path),
        texts,
        lambda text: oracle.encode(text, add_special_tokens=False).ids,
        lambda ids: oracle.decode(ids, skip_special_tokens=False),
    )


@pytest.mark.parametrize("path", found("mistral", "*"), ids=lambda path: path.name)
def test_mistrals_own_files(path: Path, texts: list[str]) -> None:
    pytest.importorskip("mistral_common")
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    oracle = Tekkenizer.from_file(path) if path.name.startswith("tekken") else SentencePieceTokenizer(path)
    ours = load_tokenizer(path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (oracle.n_words, oracle.bos_id, (oracle.eos_id,))
    text_of = partial(oracle.decode, special_token_policy=SpecialTokenPolicy.IGNORE)
    assert_same(ours, texts, lambda text: oracle.encode(text, bos=False, eos=False), text_of)
