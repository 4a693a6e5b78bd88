"""Chat templates: a conversation to text, by the jinja2 template that came with the model, in jinja2's sandbox.

The environment is the one that such templates are written for: blocks trimmed, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that escapes no HTML, `{% generation %}` blocks. https://jinja.palletsprojects.com/en/stable/sandbox
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; rendering keeps what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"chat template, line {error.lineno}: {error.message}") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    bos_token: str | None = None,
    eos_token: str | None = None,
) -> str:
    """Render the conversation as text. ValueError for bad messages, a broken template, or one that rejects them."""
    named = {"bos_token": bos_token, "eos_token": eos_token}
    variables = {name: token for name, token in named.items() if token is not None}
    plain, compiled = plain_messages(messages), _compile(template)
    try:
        return compiled.render(
            messages=plain, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **variables
        )
    except Exception as error:  # a template is foreign code and may raise anything
        raise ValueError(f"chat template: {' '.join(str(error).split()) or type(error).__name__}") from None


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy messages to plain Python values, all that a template may touch. ValueError names what is wrong and where."""
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"messages must be a list of dicts, not {type(messages).__name__}")
    if not messages:
        raise ValueError("messages is empty")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{index}] must be a dict, not {type(message).__name__}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"messages[{index}][{key!r}] must be a str, not {message.get(key)!r:.40}")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(value: Any, name: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{name} must be text, a number, a list or a dict, not {type(value).__name__}")


class SpecialTokenEscaper:
    """Hides control-token text inside messages from the tokenizer while a template is rendered.

    Each character of such text is replaced by a private character that occurs nowhere else, so lengths and positions
    stay; after the rendered text is cut at the template's own control tokens, `reveal` puts the characters back.
    """

    def __init__(self, specials: Iterable[str], template: str, messages: list[dict[str, Any]]) -> None:
        texts = [text for text in specials if text]
        letters = sorted(set("".join(texts)))
        taken = {*letters, *template, *json.dumps(messages, ensure_ascii=False)}
        free = (code for code in range(0xF0000, 0x10FFFE) if chr(code) not in taken)
        self._hidden = dict(zip(map(ord, letters), free, strict=False))
        if len(self._hidden) < len(letters):
            raise ValueError("messages use up every private Unicode character, none is left to mark control-token text")
        self._shown = {private: letter for letter, private in self._hidden.items()}
        self._special = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def hide(self, value: Any) -> Any:
        """Return the same plain value, with private characters for every control-token text in its strings."""
        if isinstance(value, str):
            return self._special.sub(lambda match: match.group().translate(self._hidden), value)
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def reveal(self, text: str) -> str:
        """Return the text with its private characters put back."""
        return text.translate(self._shown)
