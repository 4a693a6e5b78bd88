"""Prompts as callers give them: a text, token ids, or vLLM's dict with either; one of them or many."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
FORMS = TextPrompt, TokensPrompt


def as_list(prompts: Any) -> list[Prompt]:
    """Return a list of prompts, be it one or several."""
    is_sequence = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    return list(prompts) if is_sequence and not (prompts and isinstance(prompts[0], int)) else [prompts]


def content(prompt: Any) -> str | Sequence[int]:
    """Return a prompt's text or token ids; ValueError for what is no prompt."""
    if isinstance(prompt, Mapping):
        known = [key for form in FORMS for key in form.__annotations__]
        if set(prompt) - {*known} or not prompt:
            raise ValueError(
                f"a prompt's dict has one of the keys {', '.join(known)}, not {', '.join(map(quoted, [*prompt][:3]))}"
            )
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
        raise ValueError(f"a prompt is a text, token ids or a dict with either, not {type(prompt).__name__}")
    return prompt


def text_of(prompt: Any) -> str | None:
    """Return the text of a prompt; None where it is given as token ids."""
    given = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return given if isinstance(given, str) else None


def encode(prompt: str, tokenizer: Tokenizer, parse_special: bool = False, limit: int | None = None) -> list[int]:
    """Return a text's ids; they begin and end with what the model wants there, its BOS for one.

    parse_special: whether text that spells a control token becomes that token. limit: a text that cannot have as few
    tokens as this is a ValueError, found before it is cut into tokens.
    """
    tokenizer.check_length(prompt, limit)
    return tokenizer.as_prompt(tokenizer.encode(prompt, parse_special))
