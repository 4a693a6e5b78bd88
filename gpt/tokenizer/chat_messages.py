"""What a chat template is given: messages, tools and documents, checked and copied to plain values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.gpt.quoting import one_line, quoted

MAX_DEPTH = 100  # of lists and dicts in a message

MEDIA = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file")

REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that an answer's reasoning goes by

SUBCLASSES: tuple[tuple[type, Any], ...] = ((str, str.__str__), (int, int.__int__), (float, float.__float__))

Message = dict[str, Any]


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copy messages to plain Python values, all that a template may touch. ValueError names what is wrong and where.

    `role` is text. `content` is text, a list of parts, or a tool's own value; an assistant's may be None or absent.
    """
    if not messages and isinstance(messages, list | tuple):
        raise ValueError("messages is empty")
    plain = plain_dicts(messages, "messages")
    for index, message in enumerate(plain):
        _check_message(message, f"messages[{index}]")
    return list(map(_with_reasoning, plain))


def plain_dicts(values: Any, name: str) -> list[Message]:
    """Copy a list of dicts to plain Python values."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list of dicts, not {type(values).__name__}")
    plain = [plain_value(value, f"{name}[{index}]") for index, value in enumerate(values)]
    for index, value in enumerate(plain):
        if not isinstance(value, dict):
            raise ValueError(f"{name}[{index}] must be a dict, not {type(values[index]).__name__}")
    return plain


def plain_value(value: Any, name: str, depth: int = 0) -> Any:
    """Copy a value of lists, dicts, texts and numbers; models of pydantic, as clients of servers have, become dicts."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{one_line(name, 80)} is nested more than {MAX_DEPTH} deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind, plain in SUBCLASSES:  # enumerations and NumPy's scalars among them
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, Mapping):
        return {
            _plain_key(key, name): plain_value(item, f"{name}[{quoted(key)}]", depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_value(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(value)]
    if not isinstance(value, type) and callable(dump := getattr(value, "model_dump", None)):
        return plain_value(dump(), name, depth + 1)
    raise ValueError(f"{one_line(name, 200)} must be text, a number, a list or a dict, not {type(value).__name__}")


def _plain_key(key: Any, name: str) -> Any:
    if key is None or isinstance(key, str | int | float):
        return plain_value(key, name)
    raise ValueError(f"{one_line(name, 200)}: a key must be text or a number, not {type(key).__name__}")


def _check_message(message: Message, name: str) -> None:
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{name}['role'] must be a str, not {quoted(message.get('role'), 40)}")
    content = message.get("content")
    if not isinstance(content, str | list | dict) and not (content is None and message["role"] == "assistant"):
        raise ValueError(f"{name}['content'] must be a str or a list of parts, not {quoted(content, 40)}")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and part.get("type") in MEDIA:
            raise ValueError(f"{name}['content'][{index}]: {quoted(part['type'])} is not supported, only text is")


def _with_reasoning(message: Message) -> Message:
    """Give an answer's reasoning the two names that templates read it by, as transformers does."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def with_joined_parts(message: Message) -> Message:
    """Return the message with its content as one text, if that is a list of parts of text."""
    content = message.get("content")
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    if not texts or len(texts) < len(content or ()) or not all(isinstance(text, str) for text in texts):
        return message
    return {**message, "content": "\n".join(map(str, texts))}


def mark_end(message: Message, field: str, mark: str) -> str:
    """Put a mark behind the last text of a message's field, and return that text. ValueError where there is none."""
    names = [name for name in REASONING if message.get(name) == message.get(field)] if field in REASONING else [field]
    value = message.get(field)
    if isinstance(value, str):
        message.update(dict.fromkeys(names, value + mark))
        return value
    for part in reversed(value if isinstance(value, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + mark
            return text
    raise ValueError(f"continue_final_message: the last message has no text in its {quoted(field)}")


def unused_character(values: Any) -> str:
    """Return a private Unicode character that occurs nowhere in these values."""
    taken = set(json.dumps(values, ensure_ascii=False))
    free = next((code for code in range(0x100000, 0x10FFFE) if chr(code) not in taken), None)
    if free is None:
        raise ValueError("messages use up every private Unicode character, none is left to mark their end")
    return chr(free)
