"""SamplingParams: how one request is decoded, in vLLM's words and meanings. Bad values are refused when it is made."""

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.gpt.quoting import quoted

MAX_LOGPROBS = 1000
MAX_N = 1024
MAX_STOP_STRINGS = 1000  # each is looked for after every token


def _option(default: Any, help: str) -> Any:
    """Declare a field that is also an option of the command line; `help` describes it in both places."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SamplingParams:
    """Per-request decoding options; every field is checked, and a bad one is a ValueError that names it."""

    n: int = _option(1, "completions of the same prompt")
    temperature: float = _option(1.0, "0 takes the most likely token, always")
    top_k: int = _option(0, "keep the k most likely tokens; 0 or -1 keeps all")
    top_p: float = _option(1.0, "of those keep the fewest that reach this probability")
    min_p: float = _option(0.0, "of those keep the ones at least this likely, relative to the best")
    repetition_penalty: float = _option(1.0, "above 1 discourages tokens of prompt and output")
    presence_penalty: float = _option(0.0, "subtracted once from the logits of tokens already generated")
    frequency_penalty: float = _option(0.0, "subtracted each time that a token was generated")
    logit_bias: Mapping[int, float] | None = None  # added to the logits of these ids
    seed: int | None = _option(None, "the same seed gives the same text; left out, the engine's own seed chooses one")
    max_tokens: int | None = _option(16, "most tokens to generate")  # None: as many as the context holds
    min_tokens: int = _option(0, "before these, no end-of-text and no stop id can be sampled")
    stop: str | Sequence[str] = _option((), "end before this text; repeatable")
    stop_token_ids: Sequence[int] = _option((), "end at these token ids")
    ignore_eos: bool = _option(False, "go on past the end-of-text token")
    logprobs: int | None = _option(None, "also report this many most likely tokens of each step")
    prompt_logprobs: int | None = None  # the same for every prompt position
    skip_special_tokens: bool = True  # leave control tokens out of the text
    overflow: str = _option("stop", "when the context is full: stop, or shift it and forget the oldest tokens")
    cache_salt: str = ""  # requests share cached prefixes only with requests of the same salt (one per tenant)
    stop_strings: tuple[str, ...] = field(init=False, repr=False, default=())
    has_penalties: bool = field(init=False, repr=False, default=False)  # the logits depend on earlier tokens

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, math.inf)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _optional_integer("seed", self.seed, -(2**63), 2**63 - 1)
        _optional_integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _optional_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _optional_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        if self.overflow == "slide":
            warnings.warn("overflow='slide' is now overflow='shift' and will be refused", FutureWarning, stacklevel=3)
            object.__setattr__(self, "overflow", "shift")
        if self.overflow not in ("stop", "shift"):
            raise ValueError(f"overflow must be 'stop' or 'shift', not {quoted(self.overflow)}")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {quoted(getattr(self, name))}")
        if not isinstance(self.cache_salt, str):
            raise ValueError(f"cache_salt must be a string, not {quoted(self.cache_salt)}")
        for token_id in _sequence("stop_token_ids", self.stop_token_ids):
            _integer("stop_token_ids", token_id, 0, 2**31 - 1)
        self._check_logit_bias()
        self._collect_stop_strings()
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        object.__setattr__(self, "has_penalties", penalties != (1.0, 0.0, 0.0))

    def _check_logit_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias must map token ids to numbers, not {quoted(self.logit_bias)}")
        for token_id, bias in self.logit_bias.items():
            _integer("logit_bias", token_id, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0)

    def _collect_stop_strings(self) -> None:
        strings = (self.stop,) if isinstance(self.stop, str) else tuple(_sequence("stop", self.stop))
        if len(strings) > MAX_STOP_STRINGS:
            raise ValueError(f"stop has {len(strings)} strings, at most {MAX_STOP_STRINGS} are looked for")
        for text in strings:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must be non-empty strings, not {quoted(text)}")
        object.__setattr__(self, "stop_strings", strings)


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a sequence, not {quoted(value)}")
    return value


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], not {quoted(value)}")


def _optional_integer(name: str, value: Any, low: int, high: int) -> None:
    if value is not None:
        _integer(name, value, low, high)


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    """Raise ValueError unless the value is a finite number in [low, high], or in (low, high]."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not real or not low <= value <= high or (open_low and value == low):
        above = f"[{low:g}" if not open_low else f"({low:g}"
        below = f"{high:g}]" if math.isfinite(high) else "inf)"
        raise ValueError(f"{name} must be a number in {above}, {below}, not {quoted(value)}")
