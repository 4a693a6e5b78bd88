"""Prompts as callers give them: a text, token ids, or vLLM's dict with either; one of them or many.

Token ids may be a list, an array of NumPy or a tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from octavo.gpt.options.checks import plain
from octavo.gpt.quoting import quoted
from octavo.gpt.tokenizer.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    prompt: str


class _WithText(TypedDict, total=False):
    prompt: str | None


class TokensPrompt(_WithText):
    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
KEYS = "prompt", "prompt_token_ids"


def as_list(prompts: Any) -> list[Prompt]:
    """Return a list of prompts, be it one or several."""
    prompts = plain(prompts)
    is_sequence = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    return list(prompts) if is_sequence and not (len(prompts) and _is_number(prompts[0])) else [prompts]


def content(prompt: Any) -> str | Sequence[int]:
    """Return a prompt's text or token ids; ValueError for what is no prompt."""
    if isinstance(prompt, Mapping):
        others = [key for key, value in prompt.items() if key not in KEYS and value is not None]
        if others or not {*KEYS} & {*prompt}:
            shown = ", ".join(map(quoted, (others or [*prompt])[:3]))
            raise ValueError(f"a prompt's dict has one of the keys {', '.join(KEYS)}, not {shown}")
        ids = prompt.get("prompt_token_ids")
        prompt = ids if ids is not None else prompt.get("prompt")
    prompt = plain(prompt)
    if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
        raise ValueError(f"a prompt is a text, token ids or a dict with either, not {type(prompt).__name__}")
    return prompt


def text_of(prompt: Any) -> str | None:
    """Return the text of a prompt; None where it is given as token ids."""
    given = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return given if isinstance(given, str) else None


def encode(prompt: str, tokenizer: Tokenizer, parse_special: bool = False, limit: int | None = None) -> list[int]:
    """Return a text's ids; they begin with the beginning-of-text token where the model wants one.

    parse_special: whether text that spells a control token becomes that token. limit: a text that cannot have as few
    tokens as this is a ValueError, found before it is cut into tokens.
    """
    tokenizer.check_length(prompt, limit)
    ids = tokenizer.encode(prompt, parse_special)
    bos_id = tokenizer.bos_id
    return [bos_id, *ids] if bos_id is not None and (tokenizer.add_bos or not ids) else ids


def _is_number(value: Any) -> bool:
    return isinstance(plain(value), int | float)
