"""Chat templates: a conversation to text, by the jinja2 template that came with the model, in a sandbox with limits."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from octavo.gpt.quoting import one_line, quoted
from octavo.gpt.tokenizer.message_text import SpecialTokenEscaper
from octavo.gpt.tokenizer.template_sandbox import MAX_CHARACTERS, Sandbox

MAX_TEMPLATE = 200_000  # characters; the longest that models come with have a tenth of it

MAX_DEPTH = 100  # of lists and dicts in a message

MAX_MESSAGE = 800  # characters of what a template says of itself


@lru_cache(maxsize=8)
def _compile(template: str) -> CodeType:
    """Return a template's Python code; a ValueError for whatever the compilers of jinja2 and Python raise."""
    if len(template) > MAX_TEMPLATE:
        raise ValueError(f"chat template: {len(template):,} characters, at most {MAX_TEMPLATE:,} are compiled")
    try:
        code: CodeType = Sandbox().compile(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"chat template, line {error.lineno}: {one_line(error.message or '', MAX_MESSAGE)}") from None
    except Exception as error:
        raise ValueError(f"chat template: it cannot be compiled: {_reason(error)}") from None
    return code


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    bos_token: str | None = None,
    eos_token: str | None = None,
    escaper: SpecialTokenEscaper | None = None,
) -> str:
    """Render the conversation as text; an escaper hides in it what messages say of control tokens.

    ValueError for bad messages, and for a template that is broken, rejects them or takes more than the sandbox gives.
    """
    named = {"bos_token": bos_token, "eos_token": eos_token}
    variables = {name: token for name, token in named.items() if token is not None}
    plain, code = plain_messages(messages), _compile(template)
    sandbox, pieces, length = Sandbox(escaper), [], 0
    try:
        compiled = Template.from_code(sandbox, code, sandbox.make_globals(None))
        sandbox.start()
        for piece in compiled.generate(
            messages=plain if escaper is None else escaper.hide(plain),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        ):
            sandbox.tick()
            pieces.append(piece)
            if (length := length + len(piece)) > MAX_CHARACTERS:
                raise ValueError(f"it writes more than {MAX_CHARACTERS:,} characters")
    except Exception as error:  # a template is foreign code and may raise anything
        message = _reason(error)
        raise ValueError(f"chat template: {message if escaper is None else escaper.reveal(message)}") from None
    return "".join(pieces)


def _reason(error: Exception) -> str:
    return one_line(str(error), MAX_MESSAGE) or type(error).__name__


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
                raise ValueError(f"messages[{index}][{quoted(key)}] must be a str, not {quoted(message.get(key), 40)}")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"{one_line(name, 80)} is nested more than {MAX_DEPTH} deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}[{quoted(key)}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ValueError(f"{one_line(name, 200)} must be text, a number, a list or a dict, not {type(value).__name__}")
