"""Tool calls are read in the form that the model's template teaches, however the text comes in pieces."""

import json

import pytest

from octavo.gpt.server.api.tools import ToolText, marker_of

HERMES = (
    'Let me see.<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
)
ANSWERS = {  # the marker, the answer -> the text, the calls
    "hermes": ("<tool_call>", HERMES, "Let me see.", [("f", {"x": 1}), ("g", {})]),
    "mistral": ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "f", "arguments": {"x": "ü"}}]', "", [("f", {"x": "ü"})]),
    "llama": ("", '{"name": "f", "parameters": {"x": 1}}', "", [("f", {"x": 1})]),
    "llama, two": ("", ' {"name": "f"}; {"name": "g"}', "", [("f", {}), ("g", {})]),
    "no call": ("<tool_call>", "1 < 2 <tool", "1 < 2 <tool", []),
    "no JSON": ("<tool_call>", "a<tool_call>{oops", "a<tool_call>{oops", []),
    "no name": ("<tool_call>", 'a<tool_call>{"x": 1}', 'a<tool_call>{"x": 1}', []),
    "text for llama": ("", "Hello {x}", "Hello {x}", []),
    "deep": ("", "[" * 100_000, "[" * 100_000, []),
    "nothing": ("", "", "", []),
}


@pytest.mark.parametrize("size", [1, 3, 10**6])
@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_cut_into_text_and_calls(case, size):
    marker, answer, text, calls = ANSWERS[case]
    reader = ToolText(marker)
    step = max(size, len(answer) // 100)
    said = [reader.push(answer[i : i + step]) for i in range(0, len(answer), step)]
    rest, found = reader.end()
    assert "".join(said) + rest == text
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found] == calls
    assert len({call["id"] for call in found}) == len(found)


def test_text_before_a_call_comes_at_once():
    reader = ToolText("<tool_call>")
    assert [reader.push(piece) for piece in ("Let ", "me <", "b> <tool", "_call>{", "}")] == [
        "Let ",
        "me ",
        "<b> ",
        "",
        "",
    ]


def test_a_template_says_how_its_calls_look():
    assert marker_of("{% if tools %}<tool_call>{% endif %}") == "<tool_call>"
    assert marker_of("{{ tools }} [TOOL_CALLS]") == "[TOOL_CALLS]"
    assert marker_of("no such thing <tool_call>") is None
    assert marker_of("{{ tools }}") is None
