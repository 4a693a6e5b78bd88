"""Chat templates: a conversation to text, by the jinja2 template that came with the model, in a sandbox with limits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, Literal, TypedDict

from jinja2 import Template, TemplateSyntaxError

from octavo.gpt.loading.files import read_text
from octavo.gpt.quoting import one_line, quoted
from octavo.gpt.tokenizer.chat_messages import (
    Message,
    mark_end,
    plain_dicts,
    plain_messages,
    plain_value,
    unused_character,
    with_joined_parts,
)
from octavo.gpt.tokenizer.message_text import SpecialTokenEscaper
from octavo.gpt.tokenizer.template_sandbox import MAX_CHARACTERS, Sandbox

MAX_TEMPLATE = 200_000  # characters; the longest that models come with have a tenth of it

MAX_MESSAGE = 800  # characters of what a template says of itself

ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt")  # what templates know by these names

PROBE = ({"type": "text", "text": "octavo reads parts"},)

QUOTES = ("'", '"')

FILE_ENDINGS = (".jinja", ".jinja2", ".j2")

FORMATS = ("auto", "string", "openai")


class RenderOptions(TypedDict, total=False):
    """How a conversation is rendered; the words are vLLM's and transformers'.

    add_generation_prompt         end with what begins an answer (True)
    continue_final_message        leave the last message open, to be continued; a str names the field that is (False)
    tools, documents              JSON schemas of functions, and texts to refer to: lists of dicts
    chat_template_kwargs          the template's own variables, such as {"enable_thinking": False}
    chat_template_content_format  content that is a list of texts is joined by line ends ("string"), left to the
                                  template ("openai"), or joined where the template cannot read it ("auto")
    """

    add_generation_prompt: bool
    continue_final_message: bool | str
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    chat_template_content_format: Literal["auto", "string", "openai"]


class ChatOptions(RenderOptions, total=False):
    """The same, and by which template.

    chat_template                 the name of one of the model's own, a jinja2 text, or the path of a file
    """

    chat_template: str | Path | None


def choose_template(
    own: str | Mapping[str, str] | None, asked: str | Path | None = None, has_tools: bool = False
) -> str:
    """Return the text of a template: the model's own, one of its named ones, or another, given as text or as a file.

    A model with several has "default", and perhaps "tool_use" for conversations with tools.
    """
    named = {"default": own} if isinstance(own, str) else own or {}
    if asked is not None:
        return named[asked] if isinstance(asked, str) and asked in named else _given_template(asked)
    if has_tools and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if named:
        names = one_line(", ".join(map(quoted, named)), MAX_MESSAGE)
        raise ValueError(f"this model has no default chat template: chat_template must be one of {names}")
    raise ValueError("this model's files hold no chat template")


def _given_template(asked: str | Path) -> str:
    if not isinstance(asked, str | Path):
        raise ValueError(f"chat_template must be text or a path, not {type(asked).__name__}")
    if isinstance(asked, Path) or asked.endswith(FILE_ENDINGS) or _is_file(asked):
        return read_text(Path(asked))
    return asked


def _is_file(text: str) -> bool:
    """Whether a text is the name of a file; one with a template's braces or several lines is a template."""
    return not {"{", "\n"} & set(text) and len(text) < 1000 and Path(text).is_file()


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
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> str:
    """Render the conversation as text, as transformers does; options as in RenderOptions.

    ValueError for bad messages, and for a template that is broken, rejects them or takes more than the sandbox gives.
    """
    named = {"bos_token": bos_token, "eos_token": eos_token}
    options |= {"add_generation_prompt": add_generation_prompt, "tools": tools}
    text, escaper = render_hidden(template, messages, (), named, **options)
    revealed: str = escaper.reveal(text)
    return revealed


def render_hidden(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    specials: Iterable[str],
    named_tokens: Mapping[str, str | None],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_content_format: str = "auto",
) -> tuple[str, SpecialTokenEscaper]:
    """Return the conversation as text, with characters of control tokens hidden where others than the template spoke.

    specials: the texts of control tokens. named_tokens: variables that hold tokens, None for one that the model lacks.
    Whatever comes from messages, tools, documents and variables is hidden; the escaper that is returned reveals it.
    """
    if add_generation_prompt and continue_final_message:
        raise ValueError("continue_final_message needs add_generation_prompt=False: an answer is continued or begun")
    plain = _with_content(template, plain_messages(messages), chat_template_content_format)
    given = {
        "messages": plain,
        "tools": None if tools is None else plain_dicts(tools, "tools"),
        "documents": None if documents is None else plain_dicts(documents, "documents"),
        **_variables(chat_template_kwargs),
    }
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    mark = unused_character([template, given]) if continue_final_message else ""
    last = mark_end(plain[-1], field, mark + " ") if continue_final_message else ""
    escaper = SpecialTokenEscaper(specials, template, given)
    tokens = {name: token for name, token in named_tokens.items() if token is not None}
    text = _run(template, tokens | {"add_generation_prompt": add_generation_prompt} | escaper.hide(given), escaper)
    return (_cut(text, mark, last, escaper) if mark else text), escaper


def _run(template: str, variables: Mapping[str, Any], escaper: SpecialTokenEscaper) -> str:
    code, sandbox, length = _compile(template), Sandbox(escaper), 0
    pieces: list[str] = []
    try:
        compiled = Template.from_code(sandbox, code, sandbox.make_globals(None))
        sandbox.start()
        for piece in compiled.generate(variables):
            sandbox.tick()
            pieces.append(piece)
            if (length := length + len(piece)) > MAX_CHARACTERS:
                raise ValueError(f"it writes more than {MAX_CHARACTERS:,} characters")
    except Exception as error:  # a template is foreign code and may raise anything
        raise ValueError(f"chat template: {escaper.reveal(_reason(error))}") from None
    return "".join(pieces)


def _reason(error: Exception) -> str:
    return one_line(str(error), MAX_MESSAGE) or type(error).__name__


def _variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy a template's own variables to plain values."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"chat_template_kwargs must be a dict of names, not {quoted(given)}")
    for name in ARGUMENTS:
        if name in given:
            raise ValueError(f"chat_template_kwargs: {name!r} is an argument of its own")
    return {str(name): plain_value(value, f"chat_template_kwargs[{quoted(name)}]") for name, value in given.items()}


def _with_content(template: str, messages: list[Message], format: str) -> list[Message]:
    """Return the messages with content in the form that the template reads."""
    if format not in FORMATS:
        known = ", ".join(map(repr, FORMATS))
        raise ValueError(f"chat_template_content_format must be one of {known}, not {quoted(format)}")
    has_parts = any(isinstance(message.get("content"), list) for message in messages)
    if not has_parts or format == "openai" or (format == "auto" and _reads_parts(template)):
        return messages
    return list(map(with_joined_parts, messages))


@lru_cache(maxsize=8)
def _reads_parts(template: str) -> bool:
    """Whether a template takes the text out of content that is a list of parts, found by trying."""
    try:
        text = render(template, [{"role": "user", "content": PROBE}], chat_template_content_format="openai")
    except ValueError:
        return False
    before, found, after = text.partition(PROBE[0]["text"])
    return bool(found) and not (before[-1:] == after[:1] and after[:1] in QUOTES)  # quoted: the list was written out


def _cut(text: str, mark: str, last: str, escaper: SpecialTokenEscaper) -> str:
    """Return what stands before the mark behind the last message, which was marked with `mark` and a space."""
    if mark not in text or last.strip() not in escaper.reveal(text):
        raise ValueError("continue_final_message: this chat template does not show the last message as it was written")
    before, _, after = text.rpartition(mark)
    return before if after.startswith(" ") else before.rstrip()
