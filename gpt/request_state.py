"""RequestState: an unfinished completion, and what becomes of it with each token."""

from collections.abc import Callable
from dataclasses import dataclass

from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.runner.logprobs import TokenLogprobs
from octavo.gpt.sampling_params import as_ids
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.scheduler.stats import Clock
from octavo.gpt.tokenizer.detokenizer import TextStream
from octavo.gpt.tokenizer.tokenizer import Tokenizer

NOT_FINITE = "the logits were not finite"

Ending = tuple[str, int | str | None]  # finish_reason, stop_reason


@dataclass(eq=False, slots=True)
class RequestState:
    """An unfinished completion: its sequence, and the outputs that it writes to."""

    sequence: Sequence
    output: CompletionOutput
    request: RequestOutput
    stop_ids: frozenset[int]
    clock: Clock
    prompt_logprobs: list[dict[int, Logprob] | None]  # one a prompt token, where asked for; complete at the first token
    text_of: Callable[[int], str | None]  # of one id

    def append(self, token_id: int, logprobs: TokenLogprobs | None, now: float) -> Ending | None:
        """Take the sequence's next token; return how the token ends the sequence, None where it goes on."""
        sequence, output = self.sequence, self.output
        sequence.append(token_id)
        self._note_progress(now)
        if logprobs is not None and output.logprobs is not None:
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + logprobs.logprob
            output.logprobs.append(self._logprobs(token_id, logprobs))
        if logprobs is not None and logprobs.kept is not None and output.kept is not None:
            output.kept.append(logprobs.kept)
        if sequence.params.prompt_logprobs is not None:
            self.request.prompt_logprobs = self.request.prompt_logprobs or self.prompt_logprobs
        if token_id in self.stop_ids:
            return "stop", token_id if token_id in as_ids(sequence.params.stop_token_ids) else None
        if sequence.params.stop_strings and output.stream is not None:
            output.pieces()
            if output.stream.stopped_by is not None:
                return "stop", output.stream.stopped_by
        if sequence.guide is not None and sequence.guide.error:
            return "error", f"structured output: {sequence.guide.error}"
        return ("stop", None) if sequence.guide is not None and sequence.guide.is_complete else None

    def _note_progress(self, now: float) -> None:
        request, metrics = self.request, self.request.metrics
        if request.num_cached_tokens is None:
            request.num_cached_tokens = self.sequence.num_cached_tokens
            metrics.queued_ts, metrics.scheduled_ts = self.clock.added, self.clock.started or now
            metrics.first_token_ts, metrics.first_token_latency = now, now - self.clock.added
        metrics.last_token_ts = now
        metrics.num_generation_tokens += 1

    def set_prompt_logprobs(self, first: int, logprobs: list[TokenLogprobs]) -> None:
        """Note the log-probabilities of the prompt tokens from index `first` on."""
        last = first + len(logprobs)
        self.prompt_logprobs[first:last] = map(self._logprobs, self.sequence.prompt[first:last], logprobs)

    def _logprobs(self, token_id: int, logprobs: TokenLogprobs) -> dict[int, Logprob]:
        entries = {token_id: self._logprob(token_id, logprobs.logprob, logprobs.rank)}
        for rank, (other, value) in enumerate(logprobs.entries, start=1):
            entries.setdefault(other, self._logprob(other, value, rank))
        for other, value, rank in logprobs.asked:
            entries.setdefault(other, self._logprob(other, value, rank))
        return entries

    def _logprob(self, token_id: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.text_of(token_id))


def new_state(
    sequence: Sequence,
    request: RequestOutput,
    index: int,
    tokenizer: Tokenizer | None,
    text_of: Callable[[int], str | None],
) -> RequestState:
    """Add a completion to the request's outputs, and return its state."""
    params, stop_ids = sequence.params, sequence.stop_ids
    output = CompletionOutput(index, sequence.output, logprobs=[] if params.reports_logprobs else None)
    output.kept = [] if params.return_kept else None
    if tokenizer is not None and params.detokenize:
        includes_stop = params.include_stop_str_in_output
        output.stream = TextStream(
            tokenizer,
            params.stop_strings,
            params.skip_special_tokens,
            silent_ids=frozenset() if includes_stop else stop_ids,
            min_tokens=params.min_tokens,
            includes_stop=includes_stop,
        )
    request.outputs.append(output)
    num_prompt_logprobs = 0 if params.prompt_logprobs is None else len(sequence.prompt)
    return RequestState(sequence, output, request, stop_ids, Clock(), [None] * num_prompt_logprobs, text_of)


def no_token(sequence: Sequence) -> str:
    """Return why nothing could be sampled."""
    if sequence.guide is None:
        return NOT_FINITE
    return sequence.guide.error or f"{NOT_FINITE}, or all that structured output allows is banned"


def word_tokens(words: tuple[str, ...], tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """Return the words as tokens, at the start of a text and within one.

    By vLLM's rule the form after a space counts where it has as many tokens and another first one.
    """
    found: dict[tuple[int, ...], None] = {}
    if tokenizer is None:
        return ()
    for word in words:
        plain, spaced = (tuple(tokenizer.encode(prefix + word.lstrip())) for prefix in ("", " "))
        forms = [plain, spaced] if len(plain) == len(spaced) and plain[:1] != spaced[:1] else [plain]
        found.update(dict.fromkeys(filter(None, forms)))
    return tuple(found)
