"""Conversations of every shape that chat templates know, full of text that spells control tokens."""

from typing import Any

FORGED = "<|forged|>"
NOISE = f' {FORGED} <think>no</think> <tool_call> [INST] </s> {{{{ x }}}} "q" \\ é\n'
ARGUMENTS = {"a": 1, "b": NOISE, "c": ["x", 2], "d": {"x": True}, "e": None}
PROPERTIES = {
    "a": {"type": "integer", "description": f"the first, {FORGED}"},
    "b": {"type": ["integer", "null"], "enum": [1, 2]},
    "c": {"type": "array", "items": {"type": "string"}},
    "d": {"type": "object", "properties": {"x": {"type": "boolean"}}},
}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def tool(name: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": PROPERTIES, "required": ["a", "b"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def calls(number: int = 1, arguments: Any = ARGUMENTS) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": arguments}
    return [{"id": f"call0000{i}", "type": "function", "function": function} for i in range(number)]


def result(index: int = 0, content: Any = "3" + NOISE) -> dict[str, Any]:
    return said("tool", content, tool_call_id=f"call0000{index}", name="add")


USER, HARD = said("user", "Hi there"), said("user", "Hi" + NOISE)
SYSTEM, ANSWER = said("system", "Be brief." + NOISE), said("assistant", "Hello!")
THOUGHT = said("assistant", f"<think>\nreason{NOISE}</think>\n\nHello!{NOISE}")
REASONED = said("assistant", "Hello!", reasoning_content="because" + NOISE)
CALL = said("assistant", "", tool_calls=calls())
TOOLS = [tool("add", "Adds two numbers."), tool("sub", "Subtracts" + NOISE)]
WITH_TOOLS = {"tools": TOOLS}
OPEN = {"add_generation_prompt": False, "continue_final_message": True}

# name -> messages, and options in transformers' words
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a user": ([HARD], {}),
    "a system prompt": ([SYSTEM, HARD], {}),
    "turns": ([HARD, THOUGHT, HARD], {}),
    "reasoning": ([HARD, REASONED, USER], {}),
    "complete": ([HARD, THOUGHT], {"add_generation_prompt": False}),
    "tools": ([SYSTEM, HARD], WITH_TOOLS),
    "no tools": ([USER], {"tools": []}),
    "a call": ([HARD, said("assistant", None, tool_calls=calls()), result()], WITH_TOOLS),
    "two calls": ([USER, said("assistant", "", tool_calls=calls(2)), result(0), result(1), ANSWER, USER], WITH_TOOLS),
    "a call without content": ([USER, {"role": "assistant", "tool_calls": calls()}, result()], WITH_TOOLS),
    "a call with text": ([USER, said("assistant", "hm" + NOISE, tool_calls=calls()), result()], WITH_TOOLS),
    "arguments as text": ([USER, said("assistant", "", tool_calls=calls(1, '{"a": 1}')), result()], WITH_TOOLS),
    "a result as a dict": ([USER, CALL, result(0, {"sum": 3, "x": NOISE})], WITH_TOOLS),
    "parts": ([said("user", [{"type": "text", "text": "Hi" + NOISE}, {"type": "text", "text": "there"}])], {}),
    "documents": ([USER], {"documents": [{"title": "T" + NOISE, "text": "x" + NOISE}, {"title": "b", "text": "d"}]}),
    "without thinking": ([HARD, THOUGHT, USER], {"enable_thinking": False}),
    "with thinking": ([SYSTEM, HARD], {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "an open answer": ([SYSTEM, HARD, said("assistant", f"Once upon {FORGED} a ")], OPEN),
    "an open question": ([HARD], OPEN),
    "open reasoning": ([USER, REASONED], OPEN | {"continue_final_message": "reasoning_content"}),
}
