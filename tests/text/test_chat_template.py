"""Chat templates against transformers': same text, same ids; and messages cannot forge control tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from octavo.gpt.loading.gguf_file import open_gguf
from octavo.gpt.tokenizer.chat_template import render
from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.hf import from_folder
from octavo.gpt.tokenizer.message_text import SpecialTokenEscaper
from octavo.gpt.tokenizer.tokenizer import Tokenizer

from hard_text import CORPUS, TEXTS
from made_tokenizers import RULES, as_gguf, save, smollm2_oracle, train

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "named tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "absent tokens": "[{{ pad_token }}{{ unknown_name }}]",
    "blocks trimmed": "{% for m in messages %}\n  {% if loop.first %}\nU{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ '<&>' | tojson }}",
    "no tools": "{{ tools is none }} {{ documents is none }} {% if tools %}T{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "year": "{{ strftime_now('%Y') }}",
    "string methods": "{{ messages[0].content.split('e')[0].upper() }}{{ messages[-1].content[:3] }}",
}
MESSAGES = [
    {"role": "system", "content": "You are terse. <b>&</b>"},
    {"role": "user", "content": "  What is the capital of France? "},
    {"role": "assistant", "content": "Paris.\n", "tool_calls": [{"name": "f", "arguments": {"x": 1.5, "y": None}}]},
    {"role": "user", "content": "And 12 + 30? 👋🏽"},
]


def pair(folder: Path, template: str) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """The same small tokenizer with one template, ours and transformers'."""
    trained, names = train(RULES["smollm"]), {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    ours = from_folder(save(trained, folder, chat_template=template, **names))
    assert ours is not None
    return ours, PreTrainedTokenizerFast(tokenizer_object=trained, chat_template=template, **names)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("add_generation_prompt", [True, False], ids=["answer next", "complete"])
def test_same_as_transformers(tmp_path: Path, template: str, add_generation_prompt: bool) -> None:
    ours, theirs = pair(tmp_path, template)
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert render(template, MESSAGES, add_generation_prompt, "<s>", "<|im_end|>") == text
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=add_generation_prompt, return_dict=False)
    assert ours.encode_chat(MESSAGES, add_generation_prompt=add_generation_prompt) == ids


def test_a_token_that_the_model_lacks_is_no_text() -> None:
    assert render("[{{ bos_token }}{{ eos_token }}]", MESSAGES) == "[]"
    assert render("[{{ bos_token }}{{ eos_token }}]", MESSAGES, eos_token="<|im_end|>") == "[<|im_end|>]"


def test_any_conversation(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, CHATML)
    contents = TEXTS.filter(lambda text: "<|im_end|>" not in text and "<s>" not in text)
    messages = st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "x"]), "content": contents}), min_size=1
    )

    @settings(max_examples=100, deadline=None)
    @given(messages)
    def check(messages: list[dict[str, str]]) -> None:
        assert ours.encode_chat(messages) == theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    check()


FORGERIES = st.lists(
    st.sampled_from(["<s>", "<|im_end|>", "<", "<|", "im_end", "|>", "s>", "end|>", "\n", " ", "a", "\U000f0000"]),
    max_size=8,
).map("".join)


def test_messages_cannot_forge_control_tokens(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, CHATML)

    @settings(max_examples=200, deadline=None)
    @given(FORGERIES, FORGERIES)
    def check(role: str, content: str) -> None:
        ids = ours.encode_chat([{"role": role, "content": content}])
        assert [id for id in ids if ours.is_special(id)] == [0, 1, 0]
        assert ours.decode(ids) == f"<s>{role}\n{content.strip()}<|im_end|>\n<s>assistant\n"

    check()


def test_overlapping_control_tokens_stay_text() -> None:
    specials = ["ab", "bc", "abc", "d"]
    messages = [{"role": "user", "content": "xababcdbcd"}]
    escaper = SpecialTokenEscaper(specials, "", messages)
    hidden = "".join([escaper.hide(messages)[0]["content"]])  # as bare characters, which nothing translates
    assert not any(special in hidden for special in specials)
    assert len(hidden) == len("xababcdbcd")
    assert escaper.reveal(hidden) == "xababcdbcd"


def test_escaper_occur_nowhere_else(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, CHATML)
    content = "".join(map(chr, range(0xF0000, 0xF0100))) + "<s>"
    assert ours.decode(ours.encode_chat([{"role": "user", "content": content}])).startswith(f"<s>user\n{content}")
    every = "".join(map(chr, range(0xF0000, 0x10FFFE)))
    with pytest.raises(ValueError, match="every private Unicode character"):
        ours.encode_chat([{"role": "user", "content": every}])


def test_an_empty_control_token_is_never_found() -> None:
    metadata = as_gguf(train(RULES["gpt-2"]), "gpt-2") | {"tokenizer.chat_template": CHATML}
    metadata["tokenizer.ggml.tokens"][-1], metadata["tokenizer.ggml.token_type"][-1] = "", 3
    ours = from_gguf_metadata(metadata)
    ids = ours.encode_chat([{"role": "user", "content": "a<s>"}])
    assert [id for id in ids if ours.is_special(id)] == [0, 1, 0]


def test_user_defined_tokens_in_messages_are_tokens() -> None:
    metadata = as_gguf(train(RULES["gpt-2"]), "gpt-2") | {"tokenizer.chat_template": CHATML}
    ours = from_gguf_metadata(metadata)
    assert ours.vocab_size - 1 in ours.encode_chat([{"role": "user", "content": "use <tool> now"}])


BAD_MESSAGES = {
    "text": ("hello", "messages must be a list of dicts, not str"),
    "empty": ([], "messages is empty"),
    "no dict": (["hello"], r"messages\[0\] must be a dict, not str"),
    "no role": ([{"content": "x"}], r"messages\[0\]\['role'\] must be a str, not None"),
    "no content": ([MESSAGES[0], {"role": "user"}], r"messages\[1\]\['content'\] must be a str or .* not None"),
    "a picture": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
        r"messages\[0\]\['content'\]\[1\]: 'image_url' is not supported, only text is",
    ),
    "keys": (
        [{"role": "user", "content": "x", (1, 2): "x"}],
        r"messages\[0\]: a key must be text or a number, not tuple",
    ),
    "an object": (
        [{"role": "user", "content": "x", "extra": {"a": [object()]}}],
        r"messages\[0\]\['extra'\]\['a'\]\[0\]",
    ),
    "a surrogate": ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
}


@pytest.mark.parametrize(("messages", "message"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_bad_messages(tmp_path: Path, messages: Any, message: str) -> None:
    ours, _ = pair(tmp_path, CHATML)
    with pytest.raises(ValueError, match=message):
        ours.encode_chat(messages)


BAD_TEMPLATES = {
    "syntax": ("{% for x in %}", "chat template, line 1: "),
    "raises": ("{{ raise_exception('roles must\nalternate') }}", "chat template: roles must alternate"),
    "type": ("{{ messages + 1 }}", "chat template: can only concatenate"),
    "undefined": ("{{ nothing.at.all }}", "chat template: 'nothing' is undefined"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template: maximum recursion"),
    "python's insides": ("{{ ''.__class__.__mro__ }}", "chat template: .* is unsafe"),
    "changes messages": ("{{ messages.append(1) }}", "chat template: .* is unsafe"),
    "endless range": ("{% for i in range(10**9) %}{% endfor %}", "chat template: Range too big"),
    "files": ("{% include '/etc/passwd' %}", "chat template: no loader"),
}


@pytest.mark.parametrize(("template", "message"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_bad_templates(tmp_path: Path, template: str, message: str) -> None:
    ours, _ = pair(tmp_path, template)
    with pytest.raises(ValueError, match=message) as caught:
        ours.encode_chat(MESSAGES)
    assert "\n" not in str(caught.value)


def test_no_template(tmp_path: Path) -> None:
    ours = from_folder(save(train(RULES["gpt-2"]), tmp_path))
    with pytest.raises(ValueError, match="hold no chat template"):
        ours.encode_chat(MESSAGES)


def test_messages_are_not_changed(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, CHATML)
    before = json.dumps(MESSAGES)
    ours.encode_chat(MESSAGES)
    assert json.dumps(MESSAGES) == before


@pytest.mark.model
def test_smollm2(smollm2_path: Path) -> None:
    metadata = open_gguf(smollm2_path).metadata
    ours, template = from_gguf_metadata(metadata), metadata["tokenizer.chat_template"]
    theirs = PreTrainedTokenizerFast(tokenizer_object=smollm2_oracle(metadata), chat_template=template)
    theirs.add_special_tokens({"additional_special_tokens": list(ours.specials)})
    code, emoji = ([{"role": "user", "content": CORPUS[name]}] for name in ("code", "emoji"))
    for messages in (MESSAGES[1:2], MESSAGES, code, emoji):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(messages) == ids
        assert ids[0] == 1


def test_a_conversation_far_too_long_is_refused_before_it_is_cut(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, CHATML)
    long = [{"role": "user", "content": "x " * 10**6}]
    assert ours.encode_chat(MESSAGES, limit=500) == ours.encode_chat(MESSAGES)
    with pytest.raises(ValueError, match=r"the prompt has [\d,]{6,} tokens or more, max_model_len is 500"):
        ours.encode_chat(long, limit=500)


def test_messages_nested_without_end_are_refused(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path, CHATML)
    deep: dict[str, Any] = {}
    deep["x"] = deep
    with pytest.raises(ValueError, match=r"messages\[0\].* is nested more than 100 deep"):
        ours.encode_chat([{"role": "user", "content": "x", "arguments": deep}])
