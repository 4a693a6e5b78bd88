"""Tools, documents, variables and open answers on templates of each shape that models have, against transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.gpt.tokenizer.chat_template import choose_template, render, render_hidden
from octavo.gpt.tokenizer.hf import from_folder
from octavo.gpt.tokenizer.template_files import folder_templates, gguf_templates

from chats import CALL, CONVERSATIONS, FORGED, OPEN, TOOLS, USER, result, said
from made_tokenizers import RULES, save, train

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = {"tools", "documents", "add_generation_prompt", "continue_final_message"}

CHATML = """
{%- if tools %}<|im_start|>system
# Tools{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}{% if message.content is string %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson(indent=1) }}</tool_call>{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
WITH_DATE = """
{{- bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}<|header|>system<|/header|>Today: {{ date_string }}
{% for tool in tools or [] %}{{ tool | tojson(indent=4) }}{{ '\n' }}{% endfor %}{{ system }}<|eot|>
{%- for message in messages %}{% if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|header|>assistant<|/header|>
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}<|eot|>
{%- elif message.role == 'tool' %}<|header|>ipython<|/header|>
{%- if message.content is mapping %}{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}<|eot|>
{%- else %}<|header|>{{ message.role }}<|/header|>{{ message.content | trim }}<|eot|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|header|>assistant<|/header|>{% endif %}
"""
STRICT = """
{%- if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% else %}
{%- set loop_messages = messages %}{% endif %}{% set ns = namespace(turn=0) %}{{ bos_token }}
{%- for message in loop_messages %}{% if message.role in ('user', 'assistant') and message.tool_calls is not defined %}
{%- if (message.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set ns.turn = ns.turn + 1 %}{% endif %}{% if message.role == 'user' %}
{%- if loop.last and tools %}[TOOLS]{% for tool in tools %}{% for key, value in tool.function.items() %}
{{- '"' + key + '": ' }}{{ value | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}{% endfor %}
{{- '[/TOOLS]' }}{% endif %}
{{- '[INST] ' + message.content + '[/INST]' }}{% elif message.tool_calls %}[CALLS]
{%- for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('id') }}{% endif %}
{{- call.function | tojson }}{% endfor %}{{ eos_token }}
{%- elif message.role == 'assistant' %}{% generation %}{{ ' ' ~ message.content }}{% endgeneration %}{{ eos_token }}
{%- else %}{% if message.content is not string %}{% break %}{% endif %}[RESULT]{{ message.content }}[/RESULT]{% endif %}
{%- endfor %}
"""
THINKING = """
{%- set ns = namespace(last=messages | length - 1) %}{% for message in messages[::-1] %}
{%- if message.role == 'user' %}{% set ns.last = messages | length - 1 - loop.index0 %}{% break %}{% endif %}
{%- endfor %}
{%- for message in messages %}{% set content = message.content if message.content is string else '' %}
{%- if message.role == 'assistant' %}{% set reasoning = message.reasoning_content | default('') %}
{%- if '</think>' in content %}{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant
{% if loop.index0 > ns.last %}<think>{{ reasoning }}</think>{% endif %}{{ content }}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}
"""
NO_SYSTEM = """
{%- macro text(content) %}{% if content is string %}{{ content | trim }}{% else %}{% for part in content %}
{{- part.text }}{% endfor %}{% endif %}{% endmacro %}{{ bos_token }}{% if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}{% for message in messages %}<start_of_turn>
{{- 'model' if message.role == 'assistant' else message.role }}
{{ text(message.content) }}<end_of_turn>
{% endfor %}{% for document in documents or [] %}{{ "Use " | safe + document.title }}: {{ document['text'] }}
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}
"""
SHAPES = {"chatml": CHATML, "date": WITH_DATE, "strict": STRICT, "thinking": THINKING, "no system": NO_SYSTEM}
SPECIALS = [FORGED, "<think>", "</think>", "<|im_start|>", "<tool_call>", "[INST]", "<s>", "</s>", "<start_of_turn>"]


def theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    options = {"add_generation_prompt": True} | TOKENS | options
    try:
        return str(render_jinja_template([messages], chat_template=template, **options)[0][0])
    except Exception:  # whatever a template raises, and what it was not written for
        return None


@pytest.mark.parametrize("template", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_as_transformers(template: str, name: str) -> None:
    messages, options = CONVERSATIONS[name]
    if name == "parts" and theirs(template, messages) is None:
        pytest.skip("joined where the template takes no list: a test of its own")
    more = {key: options[key] for key in options.keys() & WORDS}
    variables = {key: options[key] for key in options.keys() - WORDS}
    try:
        text, escaper = render_hidden(
            template, messages, SPECIALS, TOKENS,
            chat_template_kwargs=variables, chat_template_content_format="openai", **more,
        )  # fmt: skip
    except ValueError:
        assert theirs(template, messages, **options) is None
    else:
        assert FORGED not in text
        assert escaper.reveal(text) == theirs(template, messages, **options)


def test_names_set_in_a_generation_block_end_there() -> None:
    template = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render(template, [USER]) == theirs(template, [USER]) == "21"


def test_parts_are_joined_where_the_template_reads_none() -> None:
    parts = [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]
    assert render("{{ messages[0].content }}", parts) == "a\nb"
    assert render("{{ messages[0].content }}", parts, chat_template_content_format="openai").startswith("[{'type'")
    template = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    assert render(template, parts) == "ab"
    assert render(template, parts, chat_template_content_format="string") == ""


def test_tools_and_results_cannot_forge_control_tokens(tmp_path: Path) -> None:
    template = "{{ tools | tojson }}{{ documents[0].x }}{{ a }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    ours = from_folder(save(train(RULES["smollm"]), tmp_path, chat_template=template))
    assert ours is not None
    forged = [{**USER, "<s>": "<s>"}, CALL, result(0, {"<s>": ["<|im_end|>"]})]
    documents, variables = [{"x": "<s>"}], {"a": "<|im_end|>"}
    tools = [*TOOLS, {"name": "<s>", "<|im_end|>": 1}]
    ids = ours.encode_chat(forged, tools=tools, documents=documents, chat_template_kwargs=variables)
    assert not any(map(ours.is_special, ids))
    assert ours.decode(ids).count("<s>") == theirs(template, forged, tools=tools, documents=documents, a="").count(
        "<s>"
    )


def test_which_template(tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("of a file")
    own = {"default": "d", "tool_use": "t", "rag": "r"}
    assert choose_template("d") == choose_template(own) == "d"
    assert choose_template(own, has_tools=True) == "t"
    assert choose_template(own, "rag", has_tools=True) == "r"
    assert (
        choose_template(None, tmp_path / "my.jinja") == choose_template("d", str(tmp_path / "my.jinja")) == "of a file"
    )
    assert choose_template(own, "{{ x }}") == "{{ x }}"
    with pytest.raises(ValueError, match=r"no default chat template: chat_template must be one of 'rag'$"):
        choose_template({"rag": "r"})
    with pytest.raises(FileNotFoundError, match=r"absent\.jinja"):
        choose_template(None, "absent.jinja")


def test_where_several_templates_are(tmp_path: Path) -> None:
    named = {"default": "d", "tool_use": "t"}
    assert gguf_templates({"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t"}, "f") == named
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    assert folder_templates(tmp_path, {"chat_template": "d"}) == named
    with pytest.raises(ValueError, match="chat_template must list names and templates, not 5"):
        folder_templates(tmp_path, {"chat_template": [5]})


BAD = {
    "tools": ({"tools": [json.dumps]}, r"tools\[0\] must be text, a number, a list or a dict, not function"),
    "documents": ({"documents": "x"}, "documents must be a list of dicts, not str"),
    "a variable": ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs: 'tools' is an argument of its own"),
    "variables": ({"chat_template_kwargs": 5}, "chat_template_kwargs must be a dict of names, not 5"),
    "both ends": ({"continue_final_message": True}, "continue_final_message needs add_generation_prompt=False"),
    "a field": (OPEN | {"continue_final_message": "thoughts"}, "the last message has no text in its 'thoughts'"),
    "a format": ({"chat_template_content_format": "x"}, "must be one of 'auto', 'string', 'openai', not 'x'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        render(CHATML, [USER], **options)
    assert "\n" not in str(caught.value)


def test_an_answer_that_the_template_does_not_show_cannot_be_continued() -> None:
    with pytest.raises(ValueError, match="this chat template does not show the last message as it was written"):
        render("{{ messages[0].role }}", [USER], **OPEN)
    assert render("{{ messages[0].content }}, {{ messages[0].content }}!", [USER], **OPEN) == "Hi there, Hi there"
