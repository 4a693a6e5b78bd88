"""Engine: token ids in, token ids and text out, many requests at once. It knows nothing of prompts as text."""

import random
import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import count
from typing import Any

from octavo.gpt.models.config import ModelConfig
from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.gpt.runner.model_runner import Launched, Runner
from octavo.gpt.runner.sampler import TopLogprobs
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Plan, Scheduler
from octavo.gpt.scheduler.sequence import Sequence, State
from octavo.gpt.scheduler.validation import check_request, checked_ids
from octavo.gpt.stats import Clock, Stats
from octavo.gpt.tokenizer.detokenizer import TextStream
from octavo.gpt.tokenizer.tokenizer import Tokenizer

NOT_NUMBERS = "the logits were not finite"


class QueueFullError(RuntimeError):
    """The engine holds as many waiting requests as it may."""


@dataclass(eq=False, slots=True)
class Track:
    """A sequence on its way, with what it writes to."""

    sequence: Sequence
    output: CompletionOutput
    request: RequestOutput
    stop_ids: frozenset[int]
    clock: Clock


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
        read_late: bool = False,
    ) -> None:
        self.runner = runner
        self.model_config = model_config
        self.config = config
        self.tokenizer = tokenizer
        self.scheduler = Scheduler(config, enable_prefix_caching)
        self.counts = Stats()
        self._late = int(read_late)  # steps that may be under way when `step` returns
        self._under_way: deque[Launched] = deque()
        self._random = random.Random(seed)
        self._request_ids = count()
        self._seq_ids = count()
        self._tracks: dict[int, Track] = {}  # unfinished, by seq_id
        self._requests: dict[int, list[Track]] = {}  # unfinished, by request_id

    @property
    def has_unfinished(self) -> bool:
        return bool(self._tracks)

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more requests now."""
        return len(self.scheduler.waiting) >= self.config.max_num_waiting

    def add(self, prompt_token_ids: Seq[int], params: SamplingParams, prompt: str | None = None) -> RequestOutput:
        """Queue a request; its live output. ValueError if it could never be served, QueueFullError if not now."""
        prompt_ids = self.checked_ids(prompt_token_ids)
        check_request(prompt_ids, params, self.config, self.model_config.vocab_size, self.tokenizer is not None)
        if self.is_full:
            raise QueueFullError(f"{self.config.max_num_waiting} requests are waiting already (max_num_waiting)")
        request = RequestOutput(next(self._request_ids), prompt, prompt_ids)
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        tracks: list[Track] = []
        for index in range(params.n):
            sequence = Sequence(
                seq_id=next(self._seq_ids),
                prompt=prompt_ids,
                params=params,
                seed=(seed + index + 2**63) % 2**64 - 2**63,
                window=self.config.max_model_len,
                eos_ids=self.model_config.eos_ids,
            )
            tracks.append(self._track(sequence, request, index))
        self._requests[request.request_id] = tracks
        for track in tracks:
            self._tracks[track.sequence.seq_id] = track
            self.scheduler.add(track.sequence)
        return request

    def step(self) -> list[RequestOutput]:
        """One forward step for everyone who can run; the requests that got something new.

        With `read_late` the step started here is read by the next call, after that has started its own: the host's
        work then hides behind the device's. What a sequence that ended drew meanwhile is dropped.
        """
        plan = self.scheduler.schedule()
        if plan.prefill:
            self._note_prefill(plan)
        if not plan.is_empty:
            launched = self.runner.launch(plan)
            self.scheduler.advance(plan)
            self._under_way.append(launched)
        must_read = plan.is_empty or self._part_with(launched.last)
        touched: dict[int, RequestOutput] = {}
        while len(self._under_way) > (0 if must_read else self._late):
            self._read(self._under_way.popleft(), touched)
        if not self._tracks:
            self.scheduler.pool.check([])
        return list(touched.values())

    def _part_with(self, sequences: list[Sequence]) -> bool:
        """Free what those hold whose last token is being drawn. Whether one of them slides: that needs its tokens."""
        full = [sequence for sequence in sequences if sequence.is_full]
        for sequence in full:
            self.scheduler.finish(sequence)
            self.runner.rows.leave(sequence.seq_id)
        return len(full) < len(sequences)

    def _read(self, launched: Launched, touched: dict[int, RequestOutput]) -> None:
        """Hand out what a step drew."""
        token_ids, top = launched.read()
        now = time.perf_counter()
        self.counts.num_decoded += launched.num_decoded
        for row, (sequence, token_id) in enumerate(zip(launched.sequences, token_ids, strict=True)):
            track = self._tracks.get(sequence.seq_id)
            if track is None:  # it ended while this step was under way
                self.counts.num_decoded -= row < launched.num_decoded
                continue
            if track.clock.first_token is None:
                track.clock.first_token = now
            self._take(track, token_id, top.get(row))
            touched[track.request.request_id] = track.request
        for sequence in launched.last:
            if sequence.state is State.RUNNING:
                sequence.slide()
                self.scheduler.slide(sequence)
                self.runner.rows.leave(sequence.seq_id)

    def abort(self, request_id: int) -> None:
        """End a request in whatever state it is; one that ended already, or never was, is left alone."""
        for track in self._requests.get(request_id, []):
            if not track.output.finished:
                self._finish(track, "abort")

    @property
    def unfinished_requests(self) -> list[int]:
        return list(self._requests)

    def fail_all(self, message: str) -> None:
        """End every request with an error: a step could not be computed."""
        self._under_way.clear()
        for track in list(self._tracks.values()):
            self._finish(track, "error", message)

    def stats(self) -> dict[str, Any]:
        """What the engine is doing and did: counts, blocks, and percentiles of times in seconds."""
        scheduler, pool, counts = self.scheduler, self.scheduler.pool, self.counts
        return {
            "requests_running": scheduler.num_running,
            "requests_waiting": len(scheduler.waiting) + len(scheduler.swapped),
            "requests_finished": counts.num_finished,
            "requests_preempted": scheduler.num_preempted,
            "tokens_prefilled": counts.num_prefilled,
            "tokens_decoded": counts.num_decoded,
            "blocks_used": pool.num_used,
            "blocks_cached": pool.num_cached,
            "blocks_free": pool.num_available - pool.num_cached,
            "prefix_hit_rate": scheduler.num_hit_tokens / max(scheduler.num_prompt_tokens, 1),
            **self.runner.graph_stats(),
            **counts.percentiles(),
        }

    def checked_ids(self, prompt_token_ids: Seq[int]) -> list[int]:
        """The ids as a list; ValueError naming one that is no integer or not in the vocabulary."""
        return checked_ids(prompt_token_ids, self.model_config.vocab_size)

    def _track(self, sequence: Sequence, request: RequestOutput, index: int) -> Track:
        params, stop_ids = sequence.params, sequence.stop_ids
        output = CompletionOutput(index, sequence.output, logprobs=None if params.logprobs is None else [])
        if self.tokenizer is not None:
            output.stream = TextStream(
                self.tokenizer, params.stop_strings, params.skip_special_tokens, stop_ids, params.min_tokens
            )
        request.outputs.append(output)
        return Track(sequence, output, request, stop_ids, Clock())

    def _note_prefill(self, plan: Plan) -> None:
        now = time.perf_counter()
        for chunk in plan.prefill:
            self.counts.num_prefilled += chunk.end - chunk.start
            clock = self._tracks[chunk.sequence.seq_id].clock
            clock.started = clock.started or now

    def _take(self, track: Track, token_id: int, top: TopLogprobs | None) -> None:
        """A sequence got its next token: note it, and see whether it ends."""
        sequence, output = track.sequence, track.output
        if token_id < 0:
            return self._finish(track, "error", NOT_NUMBERS)
        output.token_ids.append(token_id)
        if top is not None and output.logprobs is not None:
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + top.logprob
            output.logprobs.append(self._logprobs(token_id, top))
        if sequence.params.prompt_logprobs is not None and len(output.token_ids) == 1:
            self._note_prompt(track)
        if token_id in track.stop_ids:
            named = token_id in sequence.params.stop_token_ids
            return self._finish(track, "stop", token_id if named else None)
        if sequence.params.stop_strings and output.stream is not None:
            output.pieces()
            if output.stream.stopped_by is not None:
                return self._finish(track, "stop", output.stream.stopped_by)
        if len(output.token_ids) >= sequence.limit:
            return self._finish(track, "length")

    def _note_prompt(self, track: Track) -> None:
        """Hand the prompt's log-probabilities over: none for its first token, nor for those that no step saw."""
        entries = [self._logprobs(*entry) for entry in track.sequence.prompt_logprobs]
        num_others = len(track.sequence.prompt) - len(entries)
        track.request.prompt_logprobs = [*[None] * num_others, *entries]
        track.sequence.prompt_logprobs = []

    def _logprobs(self, token_id: int, top: TopLogprobs) -> dict[int, Logprob]:
        entries = {token_id: self._logprob(token_id, top.logprob, top.rank)}
        for rank, (other, value) in enumerate(top.entries, start=1):
            entries.setdefault(other, self._logprob(other, value, rank))
        return entries

    def _logprob(self, token_id: int, value: float, rank: int) -> Logprob:
        return Logprob(value, rank, self.text_of(token_id))

    def text_of(self, token_id: int) -> str | None:
        """What one id stands for; None without a tokenizer that knows it."""
        if self.tokenizer is None or token_id >= self.tokenizer.vocab_size:
            return None
        return self.tokenizer.decode([token_id])

    def _finish(self, track: Track, finish_reason: str, stop_reason: int | str | None = None) -> None:
        sequence, output = track.sequence, track.output
        self.scheduler.finish(sequence)
        self.runner.forget(sequence.seq_id)
        del self._tracks[sequence.seq_id]
        output.finish_reason, output.stop_reason = finish_reason, stop_reason
        self.counts.finish(track.clock, len(output.token_ids))
        if track.request.finished:
            del self._requests[track.request.request_id]
