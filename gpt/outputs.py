"""What a request gives back: vLLM's field names. The objects are live, `step` updates them in place."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int  # 1 is the most likely id
    decoded_token: str | None


@dataclass(eq=False)
class CompletionOutput:
    """One completion. `logprobs` holds a dict for each token, id -> Logprob, if the request asked for them."""

    index: int
    token_ids: list[int]
    pieces: list[str] = field(default_factory=list)  # text that can no longer change, in order
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop id or string that ended it; None for end-of-text

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(eq=False)
class RequestOutput:
    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)
