"""Tool calls in an answer's text, in the form that the model's chat template teaches it.

What follows the marker is JSON: calls, one after another or in a list, each a name and its arguments.
"""

import json
import uuid
from typing import Any

MARKERS = (  # what a template says of tools -> what calls begin with; "" where the whole answer is one
    ("<tool_call>", "<tool_call>"),  # Hermes, Qwen, SmolLM3
    ("[TOOL_CALLS]", "[TOOL_CALLS]"),  # Mistral
    ("<|tool_call|>", "<|tool_call|>"),  # Granite
    ('{"name": function name, "parameters":', ""),  # Llama 3
)
BETWEEN = " \t\r\n,;", "</tool_call>", "<tool_call>"  # characters and texts that stand between two calls
ARGUMENTS = "arguments", "parameters"

Call = dict[str, Any]


def marker_of(template: str) -> str | None:
    """Return what a call begins with in answers to this template; None where it takes no tools."""
    if "tools" not in template:
        return None
    return next((marker for said, marker in MARKERS if said in template), None)


class ToolText:
    """One answer's text as it comes: what is surely no call is let through, the rest is read at the end."""

    def __init__(self, marker: str) -> None:
        self._marker, self._held, self._is_call = marker, "", False

    def push(self, text: str) -> str:
        """Return what can be said now."""
        self._held += text
        if self._is_call:
            return ""
        start = self._start()
        self._is_call = self._held.startswith(self._marker, start) and start < len(self._held)
        said, self._held = self._held[:start], self._held[start:]
        return said

    def _start(self) -> int:
        """Return where a call begins, or may yet begin; the text's length where it does not."""
        if not self._marker:
            stripped = self._held.lstrip()
            return 0 if not stripped or stripped[0] == "{" else len(self._held)
        if (found := self._held.find(self._marker)) >= 0:
            return found
        ends = range(min(len(self._marker) - 1, len(self._held)), 0, -1)
        return len(self._held) - next((n for n in ends if self._marker.startswith(self._held[-n:])), 0)

    def end(self) -> tuple[str, list[Call]]:
        """Return the text that is left and the calls; what reads as no call is text."""
        calls = read_calls(self._held.removeprefix(self._marker)) if self._is_call else None
        return ("", calls) if calls else (self._held, [])


def read_calls(text: str) -> list[Call] | None:
    """Return the calls that a text consists of, in OpenAI's form; None where it is anything else."""
    calls: list[Call] = []
    decoder = json.JSONDecoder()
    while text := _without_separators(text):
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, dict) or not isinstance(each.get("name"), str):
                return None
            calls.append(_call(each))
        text = text[end:]
    return calls


def _without_separators(text: str) -> str:
    characters, *texts = BETWEEN
    before = None
    while text != before:
        before, text = text, text.lstrip(characters)
        for each in texts:
            text = text.removeprefix(each)
    return text


def _call(value: dict[str, Any]) -> Call:
    arguments: Any = next((value[name] for name in ARGUMENTS if name in value), {})
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": value["name"], "arguments": shown}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
