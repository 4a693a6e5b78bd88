"""Outputs of a request, with vLLM's field names. The objects are live: each step updates them in place."""

from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.gpt.tokenizer.detokenizer import TextStream


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int  # 1 is the most likely id
    decoded_token: str | None


class TokenProbability(NamedTuple):
    token_id: int
    text: str
    probability: float


@dataclass(eq=False, slots=True)
class CompletionOutput:
    """One completion. Its text is decoded when it is read.

    If the request asked for them, `logprobs` holds a dict for each token, id -> Logprob, and `cumulative_logprob` the
    sum over the chosen ids.
    """

    index: int
    token_ids: list[int]  # the sequence's own list, which `Sequence.append` extends
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop id or string that ended it; None for end-of-text
    stream: TextStream | None = field(default=None, repr=False)
    _pieces: list[str] = field(default_factory=list, repr=False)
    _num_read: int = field(default=0, repr=False)

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


@dataclass(eq=False, slots=True)
class RequestOutput:
    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # one a prompt token, None for the first
    error: BaseException | None = field(default=None, repr=False)  # what a step raised that ended the request

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)


def raise_if_failed(request: RequestOutput) -> None:
    """Raise what ended the request: the step's own exception, or ValueError with a completion's message."""
    if request.error is not None:
        raise request.error
    for output in request.outputs:
        if output.finish_reason == "error":
            raise ValueError(f"request {request.request_id} failed: {output.stop_reason}")
