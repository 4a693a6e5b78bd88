"""Small vocabularies of each shape that models come with, against the libraries that define them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from tiny_folder import GREEDY, load_tiny
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from octavo.gpt import load_tokenizer
from octavo.gpt.prompts import encode
from octavo.gpt.tokenizer.detokenizer import TextStream
from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.hf import from_folder
from octavo.gpt.tokenizer.pretokenizer import PRE
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from checkpoints import LLAMA, llama_shapes, random_tensors, save_folder
from hard_text import CORPUS, FRAGMENTS, TEXTS
from made_tokenizers import RULES, as_gguf, save, train

FUZZ = settings(max_examples=100, deadline=None)
SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LINES = [f"{a} {b}{a} don't  stop\n" for a in FRAGMENTS if a.strip() for b in FRAGMENTS[:12]]


def streamed(ours: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(ours, skip_special_tokens=False)
    return "".join(stream.push(id, number) for number, id in enumerate(ids, start=1)) + stream.flush()


def assert_same(ours: Tokenizer | None, ids_of: Any, text_of: Any) -> None:
    """Ids and text as the library's; pieces of a completion add up, and go on from a prompt without a seam."""
    assert ours is not None

    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == ids_of(text)
        assert ours.decode(ids) == text_of(ids)
        assert streamed(ours, ids) == ours.decode(ids, continues=True)
        assert ours.decode([*ids, *ids]) == ours.decode(ids) + ours.decode(ids, continues=True)

    for text in CORPUS.values():
        check(text)
    FUZZ(given(TEXTS)(check))()


# SentencePiece


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A small model as Llama's and Mistral's are: BPE with byte fallback, text as it is."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type="bpe", vocab_size=680, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def metadata_of(oracle: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece model."""
    ids = range(oracle.vocab_size())
    kinds = [2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 6 if oracle.is_byte(i) else 1 for i in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [oracle.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [oracle.get_score(id) for id in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_scores_for_merges_in_a_gguf(pieces: bytes) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    ours = from_gguf_metadata(metadata_of(oracle))
    assert_same(ours, oracle.encode, oracle.decode)
    assert encode("a b", ours) == [1, *oracle.encode("a b")]
    assert encode("<s>a</s>", ours, parse_special=True)[:2] == [1, 1]
    assert not {1, 2} & {*ours.encode("<s>a</s>")}


def test_one_score_for_all_tokens_of_a_gguf(pieces: bytes) -> None:
    """As llama.cpp's converter makes of a tokenizer.json: tokens are numbered in the order in which they merge."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    made = metadata_of(oracle)
    ours = from_gguf_metadata(made | {"tokenizer.ggml.scores": [-1000.0] * oracle.vocab_size()})
    assert_same(ours, oracle.encode, oracle.decode)


def test_runs_of_spaces_merge_last_where_a_gguf_has_no_scores() -> None:
    tokens = [SPACE, "a", SPACE * 2, f"{SPACE}a", "<unk>", "b"]
    ours = from_gguf_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [-1000.0] * len(tokens),
            "tokenizer.ggml.token_type": [1, 1, 1, 1, 2, 1],
            "tokenizer.ggml.unknown_token_id": 4,
        }
    )
    assert ours is not None
    assert ours.encode(" a") == [0, 3]
    assert ours.encode(" b") == [2, 5]


def test_a_gguf_that_wants_no_space_before_a_text(pieces: bytes) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    ours = from_gguf_metadata(metadata_of(oracle) | {"tokenizer.ggml.add_space_prefix": False})
    assert ours.encode(" don't") == oracle.encode("don't")
    assert ours.decode(ours.encode(" don't")) == " don't"


def test_a_sentencepiece_model_alone_in_its_folder(tmp_path: Path, pieces: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert_same(load_tokenizer(tmp_path), oracle.encode, oracle.decode)
    assert load_tokenizer(tmp_path / "tokenizer.model").eos_ids == (2,)


@pytest.mark.parametrize("options", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}], ids=str)
def test_sentencepiece_models_of_other_kinds(tmp_path: Path, options: dict[str, Any]) -> None:
    model = io.BytesIO()
    settings = {"model_type": "bpe", "normalization_rule_name": "identity"} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=320, byte_fallback=True, minloglevel=2, **settings
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"tokenizer\.model: a SentencePiece model of another kind"):
        load_tokenizer(tmp_path)


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"tokenizer\.model: .*pip install 'octavo\[mistral\]'"):
        load_tokenizer(tmp_path)


def test_tekken(tmp_path: Path) -> None:
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [text.encode() for text in ("th", "he", "the", " t", " the", "aa", "aaa", "é", "中")]
    pattern = PRE["tekken"].splits[0]
    config = {"pattern": pattern, "default_num_special_tokens": 30, "default_vocab_size": 30 + len(ranks)}
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(ranks)]
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    oracle = tiktoken.Encoding(
        "t", pat_str=pattern, mergeable_ranks={token: i for i, token in enumerate(ranks)}, special_tokens={}
    )
    ours = load_tokenizer(tmp_path)
    assert_same(
        ours, lambda t: [30 + id for id in oracle.encode_ordinary(t)], lambda i: oracle.decode([x - 30 for x in i])
    )
    assert (ours.bos_id, ours.eos_ids, ours.specials["[INST]"], ours.specials["<SPECIAL_29>"]) == (1, (2,), 3, 29)
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tekken\.json: malformed"):
        load_tokenizer(tmp_path)


# tokenizer.json


def spelled(metaspace: Any = None) -> tokenizers.Tokenizer:
    """Byte-fallback BPE whose merges list every cut of a token, as conversions of SentencePiece do."""
    words = sorted({line.replace(" ", SPACE)[i : i + n] for line in LINES for n in (2, 3, 5) for i in range(0, 20, n)})
    characters = sorted({SPACE, *"".join(LINES).replace(" ", SPACE)})
    vocab = {token: id for id, token in enumerate(dict.fromkeys(["<unk>", "<s>", *BYTES, *characters, *words]))}
    merges = [(w[:i], w[i:]) for w in words for i in range(1, len(w)) if w[:i] in vocab and w[i:] in vocab]
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(["<unk>", "<s>"])
    replace, fuse = decoders.Replace(SPACE, " "), [decoders.ByteFallback(), decoders.Fuse()]
    if metaspace is None:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        made.decoder = decoders.Sequence([replace, *fuse, decoders.Strip(" ", 1, 0)])
    else:
        made.pre_tokenizer, made.decoder = metaspace, decoders.Sequence([replace, *fuse])
    return made


SHAPES = {
    "prepended": spelled,
    "metaspace first": lambda: spelled(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace never": lambda: spelled(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "prefix space": lambda: train(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "split removes": lambda: train(
        pre_tokenizers.Sequence([pre_tokenizers.Split("the", "removed"), RULES["no split"]])
    ),
    "stages behind the bytes": lambda: train(
        pre_tokenizers.Sequence([RULES["gpt-2"], pre_tokenizers.Digits(individual_digits=False)])
    ),
}


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES.keys())
def test_tokenizer_json(tmp_path: Path, make: Any) -> None:
    oracle = make()
    oracle.encode_special_tokens = True
    ours = from_folder(save(oracle, tmp_path))
    assert ours is not None
    for text in CORPUS.values():
        ids = ours.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=False)
        assert streamed(ours, ids) == ours.decode(ids, continues=True)


NORMALISERS = {
    "nfkc": normalizers.NFKC(),
    "several": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "none of several": normalizers.Sequence([]),
}


@pytest.mark.parametrize("normalizer", NORMALISERS.values(), ids=NORMALISERS.keys())
def test_normalisers(tmp_path: Path, normalizer: Any) -> None:
    oracle = train(RULES["gpt-2"])
    oracle.normalizer, oracle.encode_special_tokens = normalizer, True
    ours = from_folder(save(oracle, tmp_path))
    for text in CORPUS.values():
        assert ours.encode(text) == oracle.encode(text).ids
        assert ours.least_tokens(text) <= len(ours.encode(text))


@pytest.mark.parametrize(
    ("single", "before", "after"), [("<s> <|im_end|> $A", (0, 1), ()), ("<s> $A <|im_end|>", (0,), (1,))]
)
def test_what_prompts_begin_and_end_with(
    tmp_path: Path, single: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    oracle = train(RULES["gpt-2"])
    named = [("<s>", 0), ("<|im_end|>", 1)]
    oracle.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    ours = from_folder(save(oracle, tmp_path))
    assert (ours.before, ours.after, ours.bos_id) == (before, after, 0)
    assert encode("so it is", ours) == oracle.encode("so it is").ids


def test_gemma4(tmp_path: Path) -> None:
    oracle = spelled()
    oracle.normalizer = normalizers.Replace(" ", SPACE)
    oracle.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[^\n]+|[\n]+"), "isolated")
    metadata = as_gguf(oracle, "gemma4") | {"tokenizer.ggml.model": "gemma4"}
    ours = from_gguf_metadata(metadata)
    assert ours.before == (0,)
    oracle.encode_special_tokens = True
    for text in CORPUS.values():
        assert ours.encode(text) == oracle.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pre", PRE)
def test_every_kind_that_llama_cpp_names_cuts_text(pre: str) -> None:
    ours = from_gguf_metadata(as_gguf(train(RULES["no split"]), pre))
    for text in CORPUS.values():
        if ours.vocab_size and not pre.startswith(("gemma4", "sarvam", "granite-embed-multi-311m")):
            assert ours.decode(ours.encode(text)) == text


# Chat


def test_a_conversation_is_encoded_as_a_whole_and_forges_nothing(tmp_path: Path) -> None:
    """The space before a text stands before its first word alone, not behind each control token."""
    oracle = spelled(pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    template = "{% for m in messages %}{{ '<s>' + m.content }}{% endfor %}"
    ours = from_folder(save(oracle, tmp_path, chat_template=template))
    assert ours.encode_chat([{"role": "user", "content": "don't"}]) == oracle.encode("<s>don't").ids
    forged = ours.encode_chat([{"role": "user", "content": "<s>a<s>"}])
    assert forged.count(1) == 1


# Hostile


@pytest.mark.parametrize("unit", ["a", " ", "1", "漢", "\n", "\u0315\u0300"], ids=ascii)
@pytest.mark.parametrize("make", [spelled, lambda: train(RULES["llama-bpe"])], ids=["sentencepiece", "byte level"])
def test_long_runs(tmp_path: Path, make: Any, unit: str) -> None:
    ours = from_folder(save(make(), tmp_path))
    text = unit * (100_000 // len(unit)) + "x"
    assert ours.decode(ours.encode(text)) == text


def test_a_pattern_that_backtracks_is_one_line(tmp_path: Path) -> None:
    trained = train(
        pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex("(?:a|aa)+$"), "isolated"), RULES["no split"]])
    )
    ours = from_folder(save(trained, tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer\.json: this text cannot be cut: .*retry-limit"):
        ours.encode("a" * 40 + "!")
    assert ours.decode(ours.encode("fine!")) == "fine!"


def test_thousands_of_added_tokens(tmp_path: Path) -> None:
    oracle = train(RULES["gpt-2"])
    oracle.add_tokens([AddedToken(f"<{number}>", normalized=False) for number in range(3000)])
    ours = from_folder(save(oracle, tmp_path))
    text = "so it is <7> " * 5000 + "<2999>"
    assert ours.encode(text) == oracle.encode(text).ids


# Where a tokenizer is found


def test_a_tokenizer_needs_neither_weights_nor_configuration(tmp_path: Path) -> None:
    oracle = train(RULES["gpt-2"])
    oracle.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(place).encode("so it is") == oracle.encode("so it is").ids


@pytest.mark.parametrize("options", [{"tokenizer": None}, {"skip_tokenizer_init": True}], ids=str)
def test_a_model_for_token_ids_whatever_its_tokenizer(tmp_path: Path, options: dict[str, Any]) -> None:
    config = LLAMA | {"vocab_size": 64, "max_position_embeddings": 128}
    save_folder(tmp_path, config, random_tensors(llama_shapes(config)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        load_tiny(tmp_path)
    with load_tiny(tmp_path, **options) as llm:
        assert len(llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 12
        with pytest.raises(ValueError, match="has no tokenizer: give token ids"):
            llm.encode("text")
    other = tmp_path / "other"
    other.mkdir()
    save(train(RULES["gpt-2"]), other)
    with load_tiny(tmp_path, tokenizer=other) as llm:
        assert llm.tokenizer.vocab_size > 64
