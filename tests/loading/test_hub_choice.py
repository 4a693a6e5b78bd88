"""Which files of a repository are fetched: of its listing those that are read, and no more."""

import re

import pytest

from octavo.gpt.loading.huggingface.choice import Wanted, gguf_files, is_folder_model, small_files, weight_files
from octavo.gpt.loading.huggingface.name import HubName, parse

TOKENIZER = ["additional_chat_templates/rag.jinja", "chat_template.jinja", "merges.txt", "tokenizer.json", "vocab.json"]
OTHERS = [
    ".gitattributes", "README.md", "consolidated.safetensors", "flax_model.msgpack", "model.fp16.safetensors",
    "onnx/config.json", "onnx/model.safetensors", "onnx/tokenizer.json", "original/params.json", "params.json",
    "original/tokenizer.model", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
    "tokenizer_2/spiece.model", "trainer_state.json",
]  # fmt: skip
ONE = [*OTHERS, "config.json", "generation_config.json", "model.safetensors", *TOKENIZER]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def gguf_name(text: str) -> HubName:
    name = parse(f"owner/name{text}")
    assert name is not None
    return name


def chosen(listing: list[str], text: str) -> list[str]:
    return gguf_files(listing, gguf_name(text), "HERE")


def test_a_model_is_its_configuration_its_tokenizer_and_its_weights() -> None:
    small = ["config.json", "generation_config.json", *TOKENIZER]
    assert small_files(ONE, Wanted.MODEL, "HERE") == small
    assert small_files(ONE, Wanted.TOKENIZER, "HERE") == ["config.json", *TOKENIZER]
    assert weight_files(ONE, None, "HERE") == ["model.safetensors"]


@pytest.mark.parametrize(
    "file", ["tekken.json", "tekken_240718.json", "tokenizer.model", "tokenizer.model.v3", "mistral7b.model.v2"]
)
def test_mistral_s_own_tokenizers(file: str) -> None:
    assert small_files(["params.json", "consolidated.00.pth", file], Wanted.TOKENIZER, "HERE") == [file]


def test_shards_are_those_of_the_index() -> None:
    weight_map = {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[0]}
    assert weight_files([*SHARDS, "model-00003-of-00003.safetensors"], weight_map, "HERE") == SHARDS
    with pytest.raises(ValueError, match=r"^HERE: model-00002-of-00002\.safetensors, named by .*\.json, is missing"):
        weight_files(SHARDS[:1], weight_map, "HERE")
    for odd in (None, [], {}, {"a": 7}):  # who reads the index says what is wrong with it
        assert weight_files(SHARDS, odd, "HERE") == []


@pytest.mark.parametrize(
    ("listing", "wanted", "said"),
    [
        (["config.json"], Wanted.MODEL, "no model.safetensors or model.safetensors.index.json or a GGUF file is there"),
        (["config.json", "pytorch_model.bin"], Wanted.MODEL, "is there; pytorch_model.bin is a pickle file"),
        (["model.safetensors"], Wanted.MODEL, "no config.json is there"),
        (["config.json"], Wanted.TOKENIZER, "no tokenizer is there"),
        (["model.safetensors", "config.json"], Wanted.ADAPTER, "no adapter_config.json is there"),
        (
            ["adapter_config.json", "adapter_model.bin"],
            Wanted.ADAPTER,
            "no adapter_model.safetensors is there; adapter_model.bin is a pickle file, which can run any code",
        ),
    ],
)
def test_what_is_missing_is_named(listing: list[str], wanted: Wanted, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^HERE: .*{re.escape(said)}"):
        small_files(listing, wanted, "HERE")


QUANTISED = [
    "M-IQ4_XS.gguf", "M-Q4_K_L.gguf", "M-Q4_K_M.gguf", "M-Q8_0.gguf", "M-UD-Q4_K_XL.gguf", "mmproj-M-F16.gguf",
    "M-BF16.gguf", "M-imatrix.gguf", "imatrix.Q4_K_M.gguf",
]  # fmt: skip
SPLIT = [f"M-Q8_0/M-Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


@pytest.mark.parametrize(
    ("listing", "text", "files"),
    [
        (QUANTISED, "", ["M-Q4_K_M.gguf"]),
        (QUANTISED, ":Q4_K_M", ["M-Q4_K_M.gguf"]),
        (QUANTISED, ":q8_0", ["M-Q8_0.gguf"]),
        (QUANTISED, ":Q4_K_XL", ["M-UD-Q4_K_XL.gguf"]),
        (QUANTISED, ":UD-Q4_K_XL", ["M-UD-Q4_K_XL.gguf"]),
        (QUANTISED, ":BF16", ["M-BF16.gguf"]),
        (QUANTISED, "/M-IQ4_XS.gguf", ["M-IQ4_XS.gguf"]),
        (["m.i1-q4_k_m.gguf", "m_q4_0.gguf"], ":Q4_K_M", ["m.i1-q4_k_m.gguf"]),
        (["m.i1-q4_k_m.gguf", "m_q4_0.gguf"], ":Q4_0", ["m_q4_0.gguf"]),
        (["only.gguf", "mmproj-F16.gguf"], "", ["only.gguf"]),
        (SPLIT[::-1], ":Q8_0", SPLIT),
        (SPLIT, "", SPLIT),
        (SPLIT, f"/{SPLIT[1]}", SPLIT),
        (["BF16/M-00001-of-00001.gguf", "M-Q8_0.gguf"], ":bf16", ["BF16/M-00001-of-00001.gguf"]),
    ],
)
def test_gguf_files_are_chosen_by_their_names(listing: list[str], text: str, files: list[str]) -> None:
    assert chosen(listing, text) == files


@pytest.mark.parametrize(
    ("listing", "text", "said"),
    [
        (QUANTISED, ":Q4_K", "no file of quantisation 'Q4_K', but M-BF16.gguf, M-IQ4_XS.gguf, M-Q4_K_L.gguf"),
        (QUANTISED, ":F16", "no file of quantisation 'F16', but"),
        (QUANTISED, ":Q4_XS", "no file of quantisation 'Q4_XS', but"),
        (
            ["a-Q4_0.gguf", "b-Q8_0.gguf"],
            "",
            "several GGUF files, none of Q4_K_M: name one of a-Q4_0.gguf, b-Q",
        ),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "", "more than one of Q4_K_M: name one of a-Q4_K_M.gguf, b-Q4_K_M.gguf"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], ":Q8_0", "more than one file of quantisation 'Q8_0': name one of a-Q8_0"),
        (QUANTISED, "/M-Q2_K.gguf", "M-Q2_K.gguf is not there, but M-BF16.gguf"),
        (QUANTISED, "/mmproj-M-F16.gguf", "mmproj-M-F16.gguf is not there, but M-BF16.gguf"),
        (SPLIT[:2], ":Q8_0", f"{SPLIT[2]}, a part of the model, is missing"),
        (SPLIT[1:], ":Q8_0", f"{SPLIT[0]}, a part of the model, is missing"),
        (["model.safetensors", "mmproj.gguf"], ":Q8_0", "no GGUF file is there"),
    ],
)
def test_what_cannot_be_chosen_lists_what_there_is(listing: list[str], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^HERE: .*{re.escape(said)}") as raised:
        chosen(listing, text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("listing", "text", "wanted", "in_folder"),
    [
        (ONE, "", Wanted.MODEL, True),
        ([*ONE, *QUANTISED], "", Wanted.MODEL, True),
        ([*ONE, *QUANTISED], ":Q8_0", Wanted.MODEL, False),
        (["config.json", *QUANTISED], "", Wanted.MODEL, False),
        (["config.json", *QUANTISED], "", Wanted.TOKENIZER, False),
        (["config.json", "tokenizer.json", *QUANTISED], "", Wanted.TOKENIZER, True),
        (["config.json", "tokenizer.json", *QUANTISED], "", Wanted.MODEL, False),
        (["config.json", "pytorch_model.bin"], "", Wanted.MODEL, True),
    ],
)
def test_a_repository_of_both_kinds(listing: list[str], text: str, wanted: Wanted, in_folder: bool) -> None:
    assert is_folder_model(listing, gguf_name(text), wanted) is in_folder
