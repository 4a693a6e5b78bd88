"""SamplingParams: how one request is decoded, in vLLM's words and meanings. Bad values are refused when it is made."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import octavo.gpt.options.checks as checks
from octavo.gpt.quoting import quoted
from octavo.gpt.structured.params import StructuredOutputsParams

MAX_LOGPROBS = 1000
MAX_LOGPROB_TOKEN_IDS = 128
LOGPROBS_MODES = RAW, PROCESSED = "raw_logprobs", "processed_logprobs"  # of the model; of what was sampled from
MAX_N = 1024
MAX_STOP_STRINGS = 1000  # each is looked for after every token
MAX_BAD_WORDS = 1000  # each is compared with the newest tokens at every step
MAX_BIAS = 1e30  # what is added to a logit leaves it a float32


class RequestOutputKind(IntEnum):
    """What `AsyncLLM.generate` yields: the output so far, or only the last; vLLM's DELTA is refused."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


def check_logprobs_mode(value: object) -> None:
    """ValueError for a mode that is none; vLLM's modes of logits are not for log-probabilities."""
    if value not in LOGPROBS_MODES:
        raise ValueError(f"logprobs_mode must be one of {', '.join(LOGPROBS_MODES)}, not {quoted(value)}")


def as_ids(checked: int | Iterable[int] | None) -> tuple[int, ...]:
    """A field of token ids as a SamplingParams holds it, for type checkers too: a tuple, empty for None."""
    return checked or ()  # type: ignore[return-value]


def as_texts(checked: str | Iterable[str] | None) -> tuple[str, ...]:
    """A field of texts as a SamplingParams holds it."""
    return checked or ()  # type: ignore[return-value]


def _option(default: Any, help: str) -> Any:
    """Declare a field that is also an option of the command line; `help` describes it in both places."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, repr=False)
class SamplingParams:
    """Per-request decoding options; every field is checked, and a bad one is a ValueError that names it.

    None means a field's default where vLLM's default is None. Lists become tuples, so that equal params hash alike;
    the object never changes, `replace` returns another.
    """

    n: int = _option(1, "completions of the same prompt")
    temperature: float = _option(1.0, "0 takes the most likely token, always")
    top_k: int = _option(0, "keep the k most likely tokens; 0 or -1 keeps all")
    top_p: float = _option(1.0, "of those keep the fewest that reach this probability")
    min_p: float = _option(0.0, "of those keep the ones at least this likely, relative to the best")
    repetition_penalty: float = _option(1.0, "above 1 discourages tokens of prompt and output")
    presence_penalty: float = _option(0.0, "subtracted once from the logits of tokens already generated")
    frequency_penalty: float = _option(0.0, "subtracted each time that a token was generated")
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)  # added to the logits of these ids
    seed: int | None = _option(None, "the same seed gives the same text; left out, the engine's own seed chooses one")
    max_tokens: int | None = _option(16, "most tokens to generate")  # None: as many as the context holds
    min_tokens: int = _option(0, "before these, no end-of-text and no stop id can be sampled")
    stop: str | Iterable[str] | None = _option((), "end before this text; repeatable")
    stop_token_ids: int | Iterable[int] | None = _option((), "end at these token ids")
    ignore_eos: bool = _option(False, "go on past the end-of-text token")
    logprobs: int | None = _option(None, "also report this many most likely tokens of each step")  # -1: all
    prompt_logprobs: int | None = None  # the same for every prompt position
    skip_special_tokens: bool = True  # leave control tokens out of the text
    overflow: str = _option("stop", "when the context is full: stop, or shift it and forget the oldest tokens")
    cache_salt: str = ""  # requests share cached prefixes only with requests of the same salt (one per tenant)
    allowed_token_ids: Iterable[int] | None = None  # no other id is sampled
    bad_words: str | Iterable[str] | None = _option((), "never complete this text, as its own tokens; repeatable")
    logprob_token_ids: Iterable[int] | None = None  # report these ids of each step, in place of the most likely
    include_stop_str_in_output: bool = False  # whether the text has the stop string, or the stop id's text, at its end
    detokenize: bool = True  # whether the output has text
    truncate_prompt_tokens: int | None = (
        None  # keep only so many tokens at the prompt's end; -1: what the context holds
    )
    logprobs_mode: str | None = None  # what a reported log-probability is, of LOGPROBS_MODES; None: as the LLM says
    return_kept: bool = False  # report which ids temperature, top_k, top_p and min_p left at each step
    output_kind: int = RequestOutputKind.CUMULATIVE
    spaces_between_special_tokens: bool = True  # changes nothing, as in every tokenizer but vLLM's slow ones
    skip_clone: bool = False  # changes nothing, since params never change
    skip_reading_prefix_cache: bool | None = None  # changes nothing but time: what is cached is exact
    best_of: int | None = None
    structured: StructuredOutputsParams | Mapping[str, Any] | None = None  # the form that the output has to have
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None  # vLLM's word for it: kept there
    guided_decoding: Any = None
    logits_processors: Any = None
    extra_args: Any = None
    flat_logprobs: bool = False
    stream_interval: int | None = None
    thinking_token_budget: int | None = None
    repetition_detection: Any = None
    routed_experts_prompt_start: int = 0

    def __post_init__(self) -> None:
        for name, kind, *limits in _CHECKS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, kind(name, value, *limits))
        for name in _NEUTRAL:
            if getattr(self, name) != (neutral := getattr(type(self), name)):
                raise ValueError(f"{name} is not supported: leave it out, or {neutral}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        if self.overflow == "slide":
            warnings.warn("overflow='slide' is now overflow='shift' and will be refused", FutureWarning, stacklevel=3)
            object.__setattr__(self, "overflow", "shift")
        if self.overflow not in ("stop", "shift"):
            raise ValueError(f"overflow must be 'stop' or 'shift', not {quoted(self.overflow)}")
        if self.logprobs_mode is not None:
            check_logprobs_mode(self.logprobs_mode)
        if not isinstance(self.cache_salt, str):
            raise ValueError(f"cache_salt must be a string, not {quoted(self.cache_salt)}")
        self._check_combinations()
        self._check_logit_bias()
        self._check_structured()

    def _check_structured(self) -> None:
        both = {name: getattr(self, name) for name in ("structured", "structured_outputs")}
        given = [(name, value) for name, value in both.items() if value is not None]
        if len(given) > 1:
            raise ValueError("structured and structured_outputs are two names of one thing: give one")
        form = StructuredOutputsParams.from_any(*given[0]) if given else None
        object.__setattr__(self, "structured", form)
        object.__setattr__(self, "structured_outputs", None)

    @property
    def form(self) -> StructuredOutputsParams | None:
        """`structured` as a SamplingParams holds it, for type checkers too."""
        return self.structured  # type: ignore[return-value]

    def _check_combinations(self) -> None:
        if self.allowed_token_ids == ():
            raise ValueError("allowed_token_ids is empty: no token could be sampled")
        if len(as_ids(self.logprob_token_ids)) > MAX_LOGPROB_TOKEN_IDS:
            raise ValueError(f"logprob_token_ids has more than {MAX_LOGPROB_TOKEN_IDS} ids")
        if self.stop and not self.detokenize:
            raise ValueError("stop strings need detokenize=True: without text they cannot be found")
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens must be -1 or at least 1, not 0")
        if self.output_kind == RequestOutputKind.DELTA:
            raise ValueError("output_kind DELTA is not supported: take CUMULATIVE, or LLM.stream for pieces of text")

    def _check_logit_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias must map token ids to numbers, not {quoted(self.logit_bias)}")
        biases = {
            checks.integer("logit_bias", token_id, 0, checks.MAX_TOKEN_ID): checks.number(
                "logit_bias", bias, -math.inf, MAX_BIAS
            )
            for token_id, bias in self.logit_bias.items()
        }
        object.__setattr__(self, "logit_bias", biases)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return as_texts(self.stop)

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on earlier tokens by one of the three penalties."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def reports_logprobs(self) -> bool:
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def reports_drawing(self) -> bool:
        """Whether each step reports more than its token."""
        return self.reports_logprobs or self.return_kept

    def for_engine(self, vocab_size: int, logprobs_mode: str) -> "SamplingParams":
        """Return the params with numbers in place of -1, which stands for all ids, and with the engine's mode."""
        names = [name for name in ("logprobs", "prompt_logprobs") if getattr(self, name) == -1]
        if not names and (self.logprobs_mode is not None or not self.reports_drawing):
            return self  # thousands may wait: a copy holds a kilobyte
        whole = self.replace(logprobs_mode=self.logprobs_mode or logprobs_mode)
        for name in names:
            object.__setattr__(whole, name, vocab_size)  # more than a caller may name is refused by the engine
        return whole

    def replace(self, **changes: Any) -> "SamplingParams":
        """Return the same params but for these fields."""
        return replace(self, **changes)

    def clone(self) -> "SamplingParams":
        """Return equal params."""
        return replace(self)

    @classmethod
    def from_optional(cls, **fields: Any) -> "SamplingParams":
        """Return params where None stands for a field's default."""
        return cls(**{name: value for name, value in fields.items() if value is not None})

    def __repr__(self) -> str:
        """Show what differs from the defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed = (f"{name}={value!r}" for name, value in values.items() if value != getattr(_DEFAULT, name))
        return f"SamplingParams({', '.join(changed)})"


# Words of vLLM's for what Octavo does not do: only the default, which asks for nothing, is taken.
_NEUTRAL = (
    "best_of", "guided_decoding", "logits_processors", "extra_args", "flat_logprobs",
    "stream_interval", "thinking_token_budget", "repetition_detection", "routed_experts_prompt_start",
)  # fmt: skip

_INT32, _INT64 = 2**31 - 1, 2**63 - 1

# Field, check, its limits.
_CHECKS: tuple[tuple[Any, ...], ...] = (
    ("n", checks.integer, 1, MAX_N),
    ("temperature", checks.number, 0.0, math.inf),
    ("top_k", checks.integer, -1, _INT32),
    ("top_p", checks.number, 0.0, 1.0, True),
    ("min_p", checks.number, 0.0, 1.0),
    ("repetition_penalty", checks.number, 0.0, math.inf, True),
    ("presence_penalty", checks.number, -2.0, 2.0),
    ("frequency_penalty", checks.number, -2.0, 2.0),
    ("seed", checks.integer, -_INT64 - 1, _INT64),
    ("max_tokens", checks.integer, 1, _INT32),
    ("min_tokens", checks.integer, 0, _INT32),
    ("logprobs", checks.integer, -1, MAX_LOGPROBS),
    ("prompt_logprobs", checks.integer, -1, MAX_LOGPROBS),
    ("truncate_prompt_tokens", checks.integer, -1, _INT32),
    ("output_kind", checks.integer, 0, 2),
    ("stop", checks.texts, MAX_STOP_STRINGS),
    ("bad_words", checks.texts, MAX_BAD_WORDS),
    ("stop_token_ids", checks.token_ids),
    ("allowed_token_ids", checks.token_ids),
    ("logprob_token_ids", checks.token_ids),
    *[
        (name, checks.boolean)
        for name in (
            "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize",
            "spaces_between_special_tokens", "skip_clone", "skip_reading_prefix_cache", "return_kept",
        )
    ],
)  # fmt: skip
_OPTIONAL = {
    "seed", "max_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens", "allowed_token_ids",
    "logprob_token_ids", "skip_reading_prefix_cache",
}  # fmt: skip
_DEFAULT = SamplingParams()
