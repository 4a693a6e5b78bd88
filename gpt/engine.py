"""Engine: token ids in, token ids and text out, many requests at once. Prompts as text are the front doors' matter."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import count
from typing import Any

from octavo.gpt.models.config import ModelConfig
from octavo.gpt.options.lora import Lora
from octavo.gpt.outputs import Origin, RequestOutput
from octavo.gpt.request_state import RequestState, new_state, no_token, word_tokens
from octavo.gpt.runner.model_runner import PendingStep, Runner
from octavo.gpt.runner.residence import Residence
from octavo.gpt.sampling_params import SamplingParams, as_texts
from octavo.gpt.scheduler.all_or_nothing import AllOrNothing
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Plan, Scheduler
from octavo.gpt.scheduler.sequence import Sequence, State
from octavo.gpt.scheduler.stats import Stats, tell
from octavo.gpt.scheduler.validation import check_request, checked_ids
from octavo.gpt.speculative.speculation import Speculation
from octavo.gpt.structured.guides import Guides
from octavo.gpt.tokenizer.tokenizer import Tokenizer

Listener = Callable[[RequestOutput], None]


class QueueFullError(RuntimeError):
    """The engine holds as many waiting requests as it may."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was started and not processed yet."""

    step: PendingStep
    ending_sequences: list[Sequence]  # as `Scheduler.advance` returns them


class Engine:
    """Runs requests together; what a request yields depends on it alone, not on its company.

    async_scheduling: a step is processed by the call of `step` after the one that started it, when the next step has
    been started too, so host work overlaps device work. Tokens sampled for a sequence after it ended are dropped. With
    speculation every step is processed at once, since guesses follow from the newest token.

    A request may have a listener, which is called whenever the request grew or ended; one that raises ends its request.
    Not for several threads: `EngineThread` is the owner that all callers share.
    """

    def __init__(
        self,
        runner: Runner,
        model_config: ModelConfig,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        seed: int,
        enable_prefix_caching: bool = True,
        async_scheduling: bool = False,
        speculation: Speculation | None = None,
    ) -> None:
        self.runner = runner
        self.model_config = model_config
        self.config = config
        self.tokenizer = tokenizer
        self.guides = Guides(tokenizer, model_config.vocab_size, model_config.eos_ids)
        self.scheduler = Scheduler(config, enable_prefix_caching)
        self.residence = Residence(runner)
        self.counts = Stats()
        self.owner: Callable[[], Any] = lambda: None  # a weak reference to whom requests come from
        self.speculation = speculation or Speculation()
        self._depth = int(async_scheduling and self.speculation.proposer is None)  # steps in flight between two `step`s
        self._in_flight: deque[InFlight] = deque()
        self._random = random.Random(seed)
        self._request_ids = count()
        self._seq_ids = count()
        self._states: dict[int, RequestState] = {}  # unfinished, by seq_id
        self._requests: dict[int, list[RequestState]] = {}  # unfinished, by request_id
        self._backlog: deque[RequestState] = deque()  # taken, and to be queued when there is room
        self._listening: dict[int, tuple[RequestOutput, Listener]] = {}  # until it is told of the end, by request_id

    @property
    def has_unfinished(self) -> bool:
        return bool(self._states)

    @property
    def is_driven(self) -> bool:
        """Whether somebody listens to a request: steps are due without being asked for."""
        return bool(self._listening)

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more requests now."""
        return len(self.scheduler.waiting) >= self.config.max_num_waiting

    def check(self, prompt_token_ids: Seq[int], params: SamplingParams) -> list[int]:
        """Return the prompt's ids as a list; ValueError if the request could never be served."""
        prompt_ids = self.checked_ids(prompt_token_ids)
        check_request(prompt_ids, params, self.config, self.model_config.vocab_size, self.tokenizer is not None)
        self.guides.guide(params)
        return prompt_ids

    def add(
        self,
        prompt_token_ids: Seq[int],
        params: SamplingParams,
        prompt: str | None = None,
        listener: Listener | None = None,
        lora: Lora = None,
    ) -> RequestOutput:
        """Queue a request and return its live output; lora is the adapter that it wants.

        ValueError if the request could never be served, QueueFullError if it cannot be taken now.
        """
        prompt_ids, (adapter,) = self.check(prompt_token_ids, params), self.runner.adapters.numbers(lora, 1)
        if self.is_full:
            raise QueueFullError(f"{self.config.max_num_waiting} requests are waiting already (max_num_waiting)")
        with AllOrNothing(self):
            return self._take(prompt_ids, params, prompt, listener, adapter)

    def add_all(
        self,
        requests: Seq[tuple[list[int], SamplingParams, str | None]],
        listener: Listener,
        lora: Lora | Seq[Lora] = None,
    ) -> list[RequestOutput]:
        """Take any number of requests that were checked: (ids, params, prompt). They are queued as room comes.

        lora: the adapter that all want, or that each does.
        """
        adapters = self.runner.adapters.numbers(lora, len(requests))
        with AllOrNothing(self):
            return [self._take(*each, listener, adapter) for each, adapter in zip(requests, adapters, strict=True)]

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; ValueError where there is none of that name, or while requests use it."""
        self.runner.adapters.remove(name, [state.sequence.adapter for state in self._states.values()])

    def step(self) -> list[RequestOutput]:
        """Run one forward step for everyone who can run; return the requests that got something new.

        A step that raises ends every request with an error, so no request goes on from a step half done.
        """
        with AllOrNothing(self):
            touched = self._step()
            for request in touched:
                self._notify(request.request_id)
        return touched

    def _step(self) -> list[RequestOutput]:
        self._queue_backlog()
        if self.scheduler.waiting and self.runner.follow_weights():
            self.scheduler.reset_prefix_cache()  # what the cache holds follows from the old weights
        plan = self.scheduler.schedule()
        self.speculation.extend(plan, self.scheduler)
        if not plan.is_empty:
            self._launch(plan)
        touched: dict[int, RequestOutput] = {}
        for done in self._due(must_wait=plan.is_empty):
            self._process(done, touched)
        if not self._states:
            self.scheduler.pool.check([])
        return list(touched.values())

    def recover(self, message: str, error: BaseException | None = None) -> None:
        """End every request with an error, and start with fresh books: the old ones may be those of half a step."""
        states = [state for states in self._requests.values() for state in states]
        self._states, self._requests = {}, {}
        self._in_flight.clear()
        self._backlog.clear()
        self.scheduler.reset()
        self.runner.reset()
        self.speculation.reset()
        for state in states:
            if not state.output.finished:
                state.request.error = error
                self._end(state, "error", message)
        for request_id in list(self._listening):
            self._notify(request_id)

    def _take(
        self, prompt_ids: list[int], params: SamplingParams, prompt: str | None, listener: Listener | None, adapter: int
    ) -> RequestOutput:
        self.residence.require()
        request = RequestOutput(next(self._request_ids), prompt, prompt_ids)
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        request.origin = Origin(params, seed, adapter, self.owner)
        params = params.for_engine(self.model_config.vocab_size, self.config.logprobs_mode)
        states: list[RequestState] = []
        for index in range(params.n):
            sequence = Sequence(
                seq_id=next(self._seq_ids),
                prompt=prompt_ids,
                params=params,
                seed=(seed + index + 2**63) % 2**64 - 2**63,
                max_len=self.config.max_model_len,
                eos_ids=self.model_config.eos_ids,
                bad_words=word_tokens(as_texts(params.bad_words), self.tokenizer),
                guide=self.guides.guide(params),
                adapter=adapter,
            )
            states.append(new_state(sequence, request, index, self.tokenizer, self.text_of))
        self._requests[request.request_id] = states
        if listener is not None:
            self._listening[request.request_id] = request, listener
        self._states.update((state.sequence.seq_id, state) for state in states)
        self._backlog.extend(states)
        self._queue_backlog()
        return request

    def _queue_backlog(self) -> None:
        while self._backlog and not self.is_full:
            sequence = self._backlog.popleft().sequence
            if sequence.state is State.NEW:  # it was not aborted meanwhile
                self.scheduler.add(sequence)

    def _notify(self, request_id: int) -> None:
        """Tell a request's listener, if it has one; one that raises (its event loop is closed) ends the request."""
        request, listener = self._listening.get(request_id, (None, None))
        if request is None or listener is None:
            return
        try:
            listener(request)
        except Exception:
            self.forget(listener)
        if request.finished:
            self._listening.pop(request_id, None)

    def _launch(self, plan: Plan) -> None:
        """Start a step, and let go of the sequences that it completes: their last token is in flight."""
        self._count_prefill(plan)
        step = self.runner.launch(plan)
        ending_sequences = self.scheduler.advance(plan)
        self._in_flight.append(InFlight(step, ending_sequences))
        for sequence in ending_sequences:
            if sequence.reached_limit:
                self._retire(sequence)

    def _retire(self, sequence: Sequence) -> None:
        """Free what a sequence holds. Steps already in flight use it before any later step can overwrite it."""
        self.scheduler.finish(sequence)
        self.runner.free(sequence.seq_id)
        self.speculation.free(sequence.seq_id)

    def _due(self, must_wait: bool) -> Iterator[InFlight]:
        """Yield the steps to be processed now, oldest first: all of them if a context has to be shifted before it can
        go on, if the next token's form follows from the last one, or if there was nothing to start."""
        if self._in_flight:
            last = self._in_flight[-1]
            must_wait |= last.step.is_guided or any(not each.reached_limit for each in last.ending_sequences)
        while len(self._in_flight) > (0 if must_wait else self._depth):
            yield self._in_flight.popleft()

    def _process(self, done: InFlight, touched: dict[int, RequestOutput]) -> None:
        """Hand out what a step computed, end the sequences that are complete, and shift those that are not."""
        result = done.step.result()
        now, ending_sequences = time.perf_counter(), list(done.ending_sequences)
        for sequence, first, entries in result.prompt_logprobs:
            if sequence.seq_id in self._states:
                self._states[sequence.seq_id].set_prompt_logprobs(first, entries)
        for row, (sequence, tokens) in enumerate(result.rows()):
            if row < done.step.num_decoded and self.speculation.settle(sequence, len(tokens), self.scheduler):
                ending_sequences.append(sequence)
            for token_id, logprobs in tokens:
                state = self._states.get(sequence.seq_id)
                if state is None:
                    break  # it ended while this step was in flight
                self.counts.num_decoded += row < done.step.num_decoded
                state.clock.first_token = state.clock.first_token or now
                ending = state.append(token_id, logprobs, now) if token_id >= 0 else ("error", no_token(sequence))
                if ending is not None:
                    self._finish(state, *ending)
                touched[state.request.request_id] = state.request
        for sequence in ending_sequences:
            state = self._states.get(sequence.seq_id)
            if state is not None and sequence.reached_limit:
                self._finish(state, "length")
            elif state is not None:
                self.scheduler.shift(sequence)
                self.runner.remove_row(sequence.seq_id)

    def abort(self, request_id: int) -> None:
        """End a request in whatever state it is; one that ended already, or is unknown, is left alone."""
        with AllOrNothing(self):
            for state in self._requests.get(request_id, []):
                if not state.output.finished:
                    self._finish(state, "abort")
            self._notify(request_id)

    @property
    def unfinished_requests(self) -> list[int]:
        return list(self._requests)

    def abort_all(self) -> None:
        for request_id in self.unfinished_requests:
            self.abort(request_id)

    def forget(self, listener: Listener) -> None:
        """End every request of a listener, without telling it."""
        with AllOrNothing(self):
            for request_id in [number for number, (_, other) in self._listening.items() if other is listener]:
                del self._listening[request_id]
                self.abort(request_id)

    def forget_all(self) -> None:
        """End every request, without telling anybody."""
        self._listening.clear()
        self.recover("the process was forked")

    def stats(self) -> dict[str, Any]:
        """Return what the engine does and did: counts, blocks, and percentiles of times in seconds."""
        others = self.speculation.stats() | self.runner.graph_stats()
        return tell(self.scheduler, self.counts, others)

    def checked_ids(self, prompt_token_ids: Seq[int]) -> list[int]:
        """Return the ids as a list; ValueError naming one that is no integer or not in the vocabulary."""
        return checked_ids(prompt_token_ids, self.model_config.vocab_size)

    def _count_prefill(self, plan: Plan) -> None:
        now = time.perf_counter()
        for chunk in plan.prefill:
            self.counts.num_prefilled += chunk.end - chunk.start
            clock = self._states[chunk.sequence.seq_id].clock
            clock.started = clock.started or now

    def text_of(self, token_id: int) -> str | None:
        """Return the text of one id; None without a tokenizer that knows it."""
        if self.tokenizer is None or token_id >= self.tokenizer.vocab_size:
            return None
        return self.tokenizer.decode([token_id], continues=True)

    def _finish(self, state: RequestState, finish_reason: str, stop_reason: int | str | None = None) -> None:
        self._retire(state.sequence)
        del self._states[state.sequence.seq_id]
        self._end(state, finish_reason, stop_reason)
        if state.request.finished:
            del self._requests[state.request.request_id]

    def _end(self, state: RequestState, finish_reason: str, stop_reason: int | str | None) -> None:
        state.output.finish_reason, state.output.stop_reason = finish_reason, stop_reason
        self.counts.finish(state.clock, len(state.output.token_ids))
