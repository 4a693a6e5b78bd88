"""Outputs of a request, with vLLM's field names. The objects are live: each step updates them in place."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.tokenizer.detokenizer import TextStream

SHOWN_TEXT = 200  # characters of a text in a repr


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int  # 1 is the most likely id
    decoded_token: str | None


class TokenProbability(NamedTuple):
    token_id: int
    text: str
    probability: float


def _nobody() -> None:
    """No LLM."""


class Kept(NamedTuple):
    """What temperature, top_k, top_p and min_p left of the vocabulary at one step, the token among it."""

    num_ids: int
    mass: float  # the ids' probability, after the temperature and before the filters
    bits: bytes  # one for each id of the vocabulary, the highest of a byte first

    @property
    def ids(self) -> list[int]:
        """The ids, ascending."""
        return [8 * i + bit for i, byte in enumerate(self.bits) if byte for bit in range(8) if byte << bit & 128]


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds: `arrival_time` since 1970, the others of `time.perf_counter`.

    They are 0 before they have come; scheduled and first token are those of the first completion to get one.
    """

    arrival_time: float = field(default_factory=time.time)
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0  # from queued_ts on
    num_generation_tokens: int = 0  # of all completions


@dataclass(eq=False, slots=True, repr=False)
class CompletionOutput:
    """One completion. Its text is decoded when it is read; it is empty without a tokenizer.

    If the request asked for them, `logprobs` holds a dict for each token, id -> Logprob, and `cumulative_logprob` the
    sum over the chosen ids.
    """

    index: int
    token_ids: list[int]  # the sequence's own list, which `Sequence.append` extends
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    kept: list[Kept] | None = None  # one a token, where the request asked for it
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop id or string that ended it; None for end-of-text
    stream: TextStream | None = None
    _pieces: list[str] = field(default_factory=list)
    _num_read: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces())

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def pieces(self) -> list[str]:
        """Return the text so far in the pieces in which it became certain; the list grows until the completion ends."""
        if self.stream is None or self._num_read < 0:
            return self._pieces
        for token_id in self.token_ids[self._num_read :]:
            self._num_read += 1
            self._pieces.append(self.stream.push(token_id, self._num_read))
            if self.stream.stopped_by is not None:
                break
        if self.finished:
            self._pieces.append(self.stream.flush())
            self._num_read = -1
        return self._pieces

    def __repr__(self) -> str:
        """Show the text first; of a completion that goes on, what was read of it, since another thread may be at it."""
        text = self.text if self.finished else "".join(self._pieces)
        names = ("cumulative_logprob", "finish_reason", "stop_reason")
        facts = [f"{name}={value!r}" for name in names if (value := getattr(self, name)) is not None]
        parts = [
            f"index={self.index}",
            f"text={quoted(text, SHOWN_TEXT)}",
            f"token_ids={quoted(self.token_ids)}",
            *facts,
        ]
        return f"CompletionOutput({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request's output is from, for its receipt; a copy in another process does not know the owner."""

    params: SamplingParams
    seed: int  # the one used, where the params name none
    adapter: int  # 0 for none
    owner: Callable[[], Any] = _nobody  # a weak reference to the LLM

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self.params, self.seed, self.adapter)


@dataclass(eq=False, slots=True, repr=False)
class RequestOutput:
    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # one a prompt token, None for the first
    error: BaseException | None = None  # what a step raised that ended the request
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    origin: Origin | None = None
    num_cached_tokens: int | None = None  # prompt tokens that came from the prefix cache; None before the first token

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)

    def receipt(self) -> dict[str, Any]:
        """Return data for JSON of which `octavo replay` can tell whether all of it comes out again, to the bit.

        It names the model and the options that its numbers follow from, and has a hash of the weights, versions of
        packages, prompt ids, params with the seed that was used, token ids, and hashes of the log-probabilities that
        the params ask for. ValueError before the request's end, after the weights changed, for requests with an
        adapter, and where the LLM is gone.
        """
        from octavo.gpt.receipts.receipt import receipt

        return receipt(self)

    def __getitem__(self, name: str) -> Any:
        """Return the first completion's "text" or "token_ids", as the outputs of nano-vllm do."""
        if name not in ("text", "token_ids"):
            raise KeyError(name)
        return getattr(self.outputs[0], name)

    def __repr__(self) -> str:
        prompt = quoted(self.prompt, SHOWN_TEXT) if self.prompt is not None else f"{len(self.prompt_token_ids)} tokens"
        return f"RequestOutput(request_id={self.request_id}, prompt={prompt}, outputs={self.outputs!r})"


def likeliest(request: RequestOutput) -> list[tuple[int, float]]:
    """The ids and log-probabilities of a request's first token, best first; what ended the request, if it failed."""
    raise_if_failed(request)
    entries = sorted((request.outputs[0].logprobs or [{}])[0].items(), key=lambda entry: entry[1].rank)
    return [(token_id, entry.logprob) for token_id, entry in entries]


def raise_if_failed(request: RequestOutput) -> None:
    """Raise what ended the request: the step's own exception, or ValueError with a completion's message."""
    if request.error is not None:
        raise request.error
    for output in request.outputs:
        if output.finish_reason == "error":
            raise ValueError(f"request {request.request_id} failed: {output.stop_reason}")
