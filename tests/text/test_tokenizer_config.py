"""What stands beside a folder's tokenizer: BOS and EOS, added tokens, the chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from transformers import AutoTokenizer

from octavo.gpt.prompts import encode
from octavo.gpt.tokenizer.hf import from_folder

from made_tokenizers import RULES, WITH_BOS, save, train

BESIDE = {
    "names": ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}}, 0, (1,)),
    "names in the map": ({"special_tokens_map.json": {"eos_token": {"content": "<s>"}}}, None, (0,)),
    "numbers": ({"config.json": {"bos_token_id": 0, "eos_token_id": [1, 0, 9999]}}, 0, (1, 0)),
    "names go first": (
        {"tokenizer_config.json": {"eos_token": "<s>"}, "config.json": {"bos_token_id": 1, "eos_token_id": 1}},
        1,
        (0,),
    ),
    "an ordinary token": ({"config.json": {"eos_token_id": 300}}, None, (300,)),
}


@pytest.mark.parametrize(("files", "bos_id", "eos_ids"), BESIDE.values(), ids=BESIDE.keys())
def test_bos_and_eos(tmp_path: Path, files: dict[str, Any], bos_id: int | None, eos_ids: tuple[int, ...]) -> None:
    save(train(RULES["gpt-2"]), tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours = from_folder(tmp_path)
    assert (ours.bos_id, ours.eos_ids, ours.eos_id, ours.add_bos) == (bos_id, eos_ids, eos_ids[0], False)
    assert all(ours.is_special(id) for id in eos_ids)


def test_an_added_token_that_ends_texts_is_special(tmp_path: Path) -> None:
    trained = train(RULES["gpt-2"])
    trained.add_tokens(["<tool>"])
    assert not from_folder(save(trained, tmp_path)).specials.get("<tool>")
    ours = from_folder(save(trained, tmp_path, eos_token="<tool>"))
    assert ours.specials["<tool>"] == ours.eos_id == trained.token_to_id("<tool>")
    assert ours.eos_id not in ours.encode("<tool>")


def test_the_lengths_of_a_training_run_neither_cut_nor_fill_a_text(tmp_path: Path) -> None:
    trained = train(RULES["gpt-2"])
    trained.post_processor = WITH_BOS
    plain = from_folder(save(trained, tmp_path))
    trained.enable_truncation(max_length=8)
    trained.enable_padding(length=40, pad_id=1, pad_token="<|im_end|>")
    ours = from_folder(save(trained, tmp_path))
    for text in ("a", "the quick brown fox " * 20):
        for parse_special in (False, True):
            assert encode(text, ours, parse_special) == encode(text, plain, parse_special)
        assert encode(text, ours) == AutoTokenizer.from_pretrained(tmp_path)(text).input_ids


@pytest.mark.parametrize(
    ("template", "config", "add_bos"),
    [
        (True, {}, True),
        (True, {"add_bos_token": False}, True),
        (False, {"add_bos_token": True, "bos_token": "<s>"}, False),
        (False, {"bos_token": "<s>"}, False),
    ],
    ids=["template", "switched off in vain", "switched on in vain", "only named"],
)
def test_the_post_processor_decides_about_bos(
    tmp_path: Path, template: bool, config: dict[str, Any], add_bos: bool
) -> None:
    trained = train(RULES["gpt-2"])
    if template:
        trained.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), WITH_BOS])
    ours = from_folder(save(trained, tmp_path, **config))
    assert ours.add_bos == add_bos
    assert ours.bos_id == (0 if add_bos or "bos_token" in config else None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)("a text")["input_ids"]
    assert encode("a text", ours) == theirs == trained.encode("a text").ids


@pytest.mark.parametrize(("flag", "add_bos"), [(True, True), (False, False), (None, False)])
def test_the_flag_decides_where_there_is_no_post_processor(tmp_path: Path, flag: bool | None, add_bos: bool) -> None:
    train(RULES["gpt-2"]).model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": flag}))
    assert from_folder(tmp_path).add_bos == add_bos


def test_control_tokens_in_a_text_are_text_unless_asked_for(tmp_path: Path) -> None:
    trained = train(RULES["gpt-2"])
    ours, text = from_folder(save(trained, tmp_path, bos_token="<s>")), "<s>user\nhi<|im_end|>\n"
    assert not {0, 1} & {*ours.encode(text)}
    assert ours.encode(text, parse_special=True) == trained.encode(text).ids
    assert encode(text, ours, parse_special=True) == trained.encode(text).ids
    assert encode(text, ours) == ours.encode(text)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized", "special"])
def test_control_tokens_are_found_as_the_package_finds_them(tmp_path: Path, flag: str) -> None:
    trained = train(RULES["gpt-2"])
    trained.normalizer = normalizers.Lowercase()
    trained.add_tokens([AddedToken("<new>", **{flag: True}), AddedToken("he", **{flag: True}), AddedToken("<Last>")])
    ours, theirs = from_folder(save(trained, tmp_path)), Tokenizer.from_str(trained.to_str())
    for text in ("a <new> b", "<NEW>he the he.\n <s> <Last><last>", "he", "x<new><new>y <|im_end|> "):
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("id", [-5, 2**31, 10**12, 1.0, True, "7", None])
def test_ids_that_no_network_has_are_refused(tmp_path: Path, id: Any) -> None:
    save(train(RULES["gpt-2"]), tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    data["added_tokens"].append({"id": id, "content": "<x>"} | flags)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*(expected u32|'<x>' has id 2147483648, but \d+ is)"):
        from_folder(tmp_path)


@pytest.mark.parametrize("options", [{}, {"normal_form": "NFC"}, {"added": True}, {"whole_alphabet": False}], ids=str)
def test_a_text_has_at_least_as_many_tokens_as_its_length_says(tmp_path: Path, options: dict[str, Any]) -> None:
    trained = train(RULES["gpt-2"], options.get("whole_alphabet", True))
    if "normal_form" in options:
        trained.normalizer = normalizers.NFC()
    if "added" in options:
        trained.add_tokens([AddedToken("<gap>", lstrip=True)])
    ours = from_folder(save(trained, tmp_path))
    longest = max(trained.get_vocab(), key=len)
    texts = ["", "a", longest * 50, "\u03b1\u0313\u0300\u0345" * 50, "\u212a" * 50, " " * 500 + "<gap>", "é" * 50]
    for text in texts:
        assert ours.least_tokens(text) <= len(ours.encode(text))
    assert ours.least_tokens("x" * 10**6) == 0 or not {"added", "whole_alphabet"} & {*options}


def test_a_text_far_too_long_is_refused_before_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = from_folder(save(train(RULES["gpt-2"]), tmp_path))
    assert encode("the fox", ours, limit=64) == encode("the fox", ours)
    monkeypatch.setattr(ours, "encode", None)
    with pytest.raises(ValueError, match=r"the prompt has [\d,]{6,} tokens or more, max_model_len is 64"):
        encode("x" * 10**7, ours, limit=64)


def test_added_tokens_of_the_configuration(tmp_path: Path) -> None:
    trained = train(RULES["gpt-2"])
    size = trained.get_vocab_size()
    listed = {str(size): {"content": "<new>", "special": True}, str(size + 1): {"content": "<use>"}}
    ours = from_folder(save(trained, tmp_path, added_tokens_decoder=listed))
    assert ours.specials == {"<s>": 0, "<|im_end|>": 1, "<new>": size}
    assert ours.encode("<use>") == [size + 1]
    assert len(ours.encode("<new>")) > 1


@pytest.mark.parametrize(
    ("config", "file", "template"),
    [
        ({}, None, None),
        ({"chat_template": "plain"}, None, "plain"),
        (
            {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]},
            None,
            {"rag": "r", "default": "d"},
        ),
        ({"chat_template": [{"name": "rag", "template": "r"}]}, None, {"rag": "r"}),
        ({"chat_template": "plain"}, "from the file é", "from the file é"),
    ],
    ids=["none", "text", "named", "no default", "file first"],
)
def test_where_the_chat_template_is(tmp_path: Path, config: dict, file: str | None, template: str | None) -> None:
    save(train(RULES["gpt-2"]), tmp_path, **config)
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file, encoding="utf-8")
    assert from_folder(tmp_path).chat_template == template
