"""Engine: token ids in, token ids and text out, many requests at once. It knows nothing of prompts as text."""

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import count

from octavo.gpt.config import EngineConfig, ModelConfig
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.runner import Runner
from octavo.gpt.sampler import Sampled
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler import Scheduler
from octavo.gpt.sequence import Sequence
from octavo.gpt.text import TextStream
from octavo.gpt.tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class Track:
    """A sequence on its way, with what it writes to."""

    sequence: Sequence
    output: CompletionOutput
    request: RequestOutput
    text: TextStream | None
    stop_ids: frozenset[int]


class Engine:
    """Runs requests together; what a request yields depends on it alone, not on its company."""

    def __init__(
        self,
        runner: Runner,
        model_config: ModelConfig,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        seed: int,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.runner = runner
        self.model_config = model_config
        self.config = config
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(config, enable_prefix_caching)
        self._random = random.Random(seed)
        self._request_ids = count()
        self._seq_ids = count()
        self._tracks: dict[int, Track] = {}  # unfinished, by seq_id
        self._requests: dict[int, list[Track]] = {}  # unfinished, by request_id

    @property
    def has_unfinished(self) -> bool:
        return bool(self._tracks)

    def add(self, prompt_token_ids: Seq[int], params: SamplingParams, prompt: str | None = None) -> RequestOutput:
        """Queue a request; its live output. ValueError if it could never be served."""
        prompt_ids = self.checked_ids(prompt_token_ids)
        self._check(prompt_ids, params)
        request = RequestOutput(next(self._request_ids), prompt, prompt_ids, [])
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        tracks: list[Track] = []
        for index in range(params.n):
            leader = tracks[0].sequence if tracks else None
            sequence = Sequence(
                seq_id=next(self._seq_ids),
                prompt=prompt_ids,
                params=params,
                seed=(seed + index + 2**63) % 2**64 - 2**63,
                window=self.config.max_model_len,
                eos_ids=self.model_config.eos_ids,
                leader=leader,
            )
            tracks.append(self._track(sequence, request, index))
        self._requests[request.request_id] = tracks
        for track in tracks:
            self._tracks[track.sequence.seq_id] = track
            self.scheduler.add(track.sequence)
        return request

    def step(self) -> list[RequestOutput]:
        """One forward step for everyone who can run; the requests that got something new."""
        plan = self.scheduler.schedule()
        sequences, choices = self.runner.run(plan)
        self.scheduler.advance(plan)
        touched: dict[int, RequestOutput] = {}
        for sequence, choice in zip(sequences, choices, strict=True):
            track = self._tracks[sequence.seq_id]
            self._take(track, choice)
            touched[track.request.request_id] = track.request
        if not self._tracks:
            self.scheduler.pool.check([])
        return list(touched.values())

    def abort(self, request_id: int) -> None:
        """End a request in whatever state it is; one that ended already, or never was, is left alone."""
        for track in self._requests.get(request_id, []):
            if not track.output.finished:
                self._finish(track, "abort")

    def checked_ids(self, prompt_token_ids: Seq[int]) -> list[int]:
        vocab_size = self.model_config.vocab_size
        for token_id in prompt_token_ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise ValueError(f"prompt token ids must be integers, not {token_id!r}")
            if not 0 <= token_id < vocab_size:
                raise ValueError(f"prompt token id {token_id} is outside the vocabulary of {vocab_size}")
        return list(prompt_token_ids)

    def _check(self, prompt_ids: list[int], params: SamplingParams) -> None:
        """Refuse at the door what could never be served."""
        window, vocab_size = self.config.max_model_len, self.model_config.vocab_size
        if not prompt_ids:
            raise ValueError("the prompt is empty, and the model has no beginning-of-text token to start from")
        if len(prompt_ids) > window and params.overflow == "stop":
            raise ValueError(f"the prompt has {len(prompt_ids)} tokens, the window {window} (overflow='slide' cuts it)")
        for name, token_ids in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
            for token_id in token_ids:
                if token_id >= vocab_size:
                    raise ValueError(f"{name} has token id {token_id}, outside the vocabulary of {vocab_size}")
        if params.stop_strings and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this model has none: use stop_token_ids")
        most = window if params.max_tokens is None else min(window, len(prompt_ids) + params.max_tokens - 1)
        held = self.config.num_blocks * self.config.block_size
        if most > held:
            raise ValueError(f"the request may need {most} cached tokens, the cache holds {held}: raise num_blocks")

    def _track(self, sequence: Sequence, request: RequestOutput, index: int) -> Track:
        params = sequence.params
        output = CompletionOutput(index, sequence.output, logprobs=None if params.logprobs is None else [])
        request.outputs.append(output)
        text = None
        if self.tokenizer is not None:
            text = TextStream(self.tokenizer, params.stop_strings, params.skip_special_tokens)
        return Track(sequence, output, request, text, sequence.stop_ids)

    def _take(self, track: Track, choice: Sampled) -> None:
        """A sequence got its next token: note it, and see whether it ends."""
        sequence, output, params = track.sequence, track.output, track.sequence.params
        if choice.token_id < 0:
            return self._finish(track, "error", "the logits were not finite")
        sequence.output.append(choice.token_id)
        output.cumulative_logprob += choice.logprob
        if output.logprobs is not None:
            output.logprobs.append(self._logprobs(choice))
        if choice.token_id in track.stop_ids:
            is_eos = choice.token_id in sequence.eos_ids and choice.token_id not in params.stop_token_ids
            return self._finish(track, "stop", None if is_eos else choice.token_id)
        if track.text is not None:
            output.pieces.append(track.text.push(choice.token_id, len(sequence.output) >= params.min_tokens))
            if track.text.stopped_by is not None:
                return self._finish(track, "stop", track.text.stopped_by)
        is_full = params.overflow == "stop" and sequence.num_tokens > sequence.window
        if is_full or len(sequence.output) == params.max_tokens:
            return self._finish(track, "length")
        sequence.slide()

    def _logprobs(self, choice: Sampled) -> dict[int, Logprob]:
        entries = {choice.token_id: self._logprob(choice.token_id, choice.logprob, choice.rank)}
        for rank, (token_id, value) in enumerate(choice.top, start=1):
            entries.setdefault(token_id, self._logprob(token_id, value, rank))
        return entries

    def _logprob(self, token_id: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.tokenizer.decode([token_id]) if self.tokenizer else None)

    def _finish(self, track: Track, finish_reason: str, stop_reason: int | str | None = None) -> None:
        sequence, output = track.sequence, track.output
        self.scheduler.finish(sequence)
        self.runner.forget(sequence.seq_id)
        del self._tracks[sequence.seq_id]
        if track.text is not None and not track.text.stopped_by:
            output.pieces.append(track.text.flush())
            if track.text.stopped_by is not None and finish_reason == "length":
                finish_reason, stop_reason = "stop", track.text.stopped_by
        output.finish_reason, output.stop_reason = finish_reason, stop_reason
        if track.request.finished:
            del self._requests[track.request.request_id]
