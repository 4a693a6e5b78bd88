"""Prompts as callers give them: a text, token ids, or vLLM's dict with either; one of them or many.

Token ids may be a list, an array of NumPy or a tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from octavo.gpt.engine import Engine
from octavo.gpt.options.checks import plain
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.tokenizer.chat_template import ChatOptions
from octavo.gpt.tokenizer.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    prompt: str


class _WithText(TypedDict, total=False):
    prompt: str | None


class TokensPrompt(_WithText):
    prompt_token_ids: Sequence[int]


Message = Mapping[str, Any]
Conversations = Sequence[Message | Sequence[Message]]  # one or several
Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
# One or several. Type checkers read a list in place as what the one Sequence here says; two of them, and mypy finds a
# `list[object]` in right programs. Numbers among prompts are refused when they come.
Prompts = str | TextPrompt | TokensPrompt | Sequence[int | Prompt]
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
    """Return a text's ids; they begin and end with what the model wants there, its BOS for one.

    parse_special: whether text that spells a control token becomes that token. limit: a text that cannot have as few
    tokens as this is a ValueError, found before it is cut into tokens.
    """
    tokenizer.check_length(prompt, limit)
    return tokenizer.as_prompt(tokenizer.encode(prompt, parse_special))


class EncodesPrompts:
    """The part of an LLM that turns what callers give into token ids."""

    name: str
    tokenizer: Tokenizer | None
    config: EngineConfig
    engine: Engine
    parse_special: bool

    def encode_chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> list[int]:
        """Return the token ids of a conversation in the model's own template, ready for the assistant's answer."""
        if self.tokenizer is None:
            raise ValueError(f"chat needs a tokenizer, and the model {self.name} has none")
        if self.tokenizer.chat_template is None and options.get("chat_template") is None:
            raise ValueError(f"the model {self.name} has no chat template")
        return self.tokenizer.encode_chat(list(messages), limit=self.config.max_model_len, **options)

    def chat_prompt(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> TokensPrompt:
        """Return a conversation as a prompt: the ids of `encode_chat`, and the text that they spell."""
        ids = self.encode_chat(messages, **options)
        return {"prompt_token_ids": ids, "prompt": None if self.tokenizer is None else self.tokenizer.decode(ids)}

    def encode(self, prompt: Prompt, parse_special: bool | None = None) -> list[int]:
        """Return a prompt as token ids; text begins with the model's beginning-of-text token where it wants one.

        parse_special: as the LLM's own, unless given.
        """
        return self._as_ids(prompt, self.parse_special if parse_special is None else parse_special, None)

    def encode_request(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """Return the prompt's ids; ValueError for one that surely does not fit, before all of it is cut into tokens."""
        kept = params.truncate_prompt_tokens
        limit = self.config.max_model_len if params.overflow == "stop" and kept is None else None
        ids = self._as_ids(prompt, self.parse_special, limit)
        return ids if kept is None else ids[-(self.config.max_model_len if kept == -1 else kept) :]

    def _as_ids(self, prompt: Prompt, parse_special: bool, limit: int | None) -> list[int]:
        given = content(prompt)
        if not isinstance(given, str):
            return self.engine.checked_ids(given)
        if self.tokenizer is None:
            raise ValueError(f"the model {self.name} has no tokenizer: give token ids")
        return encode(given, self.tokenizer, parse_special, limit)


def _is_number(value: Any) -> bool:
    return isinstance(plain(value), int | float)
