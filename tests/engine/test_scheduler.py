"""A state machine over scheduler and blocks: whatever happens, no block is lost, shared while written, or misread.

The cache is modelled by what each slot holds: the whole text up to and including its token, and the oldest weights that
it follows from. So a wrong share, a stale prefix, a lost swap or an overwritten neighbour shows as a text that is not
the reader's own, or as weights that were replaced before the reader began. With a sliding window a token reads only
the window, and what lies before it is held no longer.
"""

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import PREEMPTIONS, EngineConfig
from octavo.gpt.scheduler.scheduler import Plan, Scheduler
from octavo.gpt.scheduler.sequence import Sequence, State

from counted import count
from watched import is_empty

CONTEXT = 24
MAX_TOKENS = 30
# A shift computes the context anew. With a budget of one token a step, every token of a full context costs as many
# steps as the context has tokens; a preempted sequence computes them once more.
MAX_STEPS = 2 * (MAX_TOKENS + 1) * CONTEXT  # a sequence


def token_of(sequence: Sequence, index: int) -> int:
    """What the sequence says as its output's token `index`."""
    return (sequence.seq_id + index) % 2


def text_of(sequence: Sequence, end: int) -> tuple[int, ...]:
    """Its first `end` visible tokens, those included that were sampled and not read yet."""
    num_sampled = max(sequence.context_start + end - len(sequence.prompt), 0)
    text = [*sequence.prompt, *(token_of(sequence, index) for index in range(num_sampled))]
    return tuple(text[sequence.context_start : sequence.context_start + end])


Content = tuple[tuple[int, ...], int]  # the visible text up to a token, and the oldest weights behind its values


class Cache:
    """Stands for the tensors: slot -> its content."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.size = scheduler.config.block_size
        self.slots: dict[tuple[int, int], Content] = {}
        self.host: dict[int, list[dict[int, Content]]] = {}
        self.weights = 0  # how often they were replaced
        self.began: dict[int, int] = {}  # seq_id -> the weights when its present blocks were begun

    def run(self, plan: Plan) -> list[Sequence]:
        """Execute a plan, checking every read; the sequences that get a token."""
        for swap in plan.swap_out:
            self.host[swap.seq_id] = [self._block(block) for block in swap.blocks]
        for swap in plan.swap_in:
            for block, content in zip(swap.blocks, self.host.pop(swap.seq_id), strict=True):
                self.slots.update({(block, offset): value for offset, value in content.items()})
        for chunk in plan.prefill:
            self._compute(chunk.sequence, chunk.start, chunk.end)
        for sequence in plan.decode:
            self._compute(sequence, sequence.num_computed, sequence.num_computed + 1)
        for sequence in plan.new_blocks:
            assert sequence in plan.decode, "a new block, but not decoding"
        done = [chunk.sequence for chunk in plan.prefill if chunk.is_last]
        assert all(sequence.num_prefill == sequence.num_in_context for sequence in done)
        return done + plan.decode

    def _block(self, block: int) -> dict[int, Content]:
        return {o: self.slots[block, o] for o in range(self.size) if (block, o) in self.slots}

    def _compute(self, sequence: Sequence, start: int, end: int) -> None:
        assert start == sequence.num_computed, "a gap in what was computed"
        text, window = text_of(sequence, end), self.scheduler.config.sliding_window
        earliest = max(0, start + 1 - window) if window else 0
        began, oldest = self.began.get(sequence.seq_id, 0), self.weights
        for position in range(earliest, end):
            slot = sequence.block_table[position // self.size], position % self.size
            assert slot[0] >= 0, "a block was given back too early"
            if position < start:
                held, weights = self.slots[slot]
                assert held == text[: position + 1], "the cache holds someone else's text"
                assert weights >= began, "the cache holds what older weights gave"
                oldest = min(oldest, weights)
            else:
                self.slots[slot] = text[: position + 1], oldest


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(2, 64),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.integers(1, 16),
        max_num_seqs=st.integers(1, 6),
        preemption=st.sampled_from(PREEMPTIONS),
        recompute_cost=st.sampled_from([1, 2, 128]),
        prefix_caching=st.booleans(),
        async_scheduling=st.booleans(),
        sliding_window=st.just(0) | st.integers(1, 12),
    )
    def start(self, num_blocks, block_size, budget, max_num_seqs, prefix_caching, async_scheduling, **others):
        count("state machine of scheduler and blocks")
        config = EngineConfig(CONTEXT, block_size, num_blocks, max_num_seqs, budget, **others)
        self.scheduler = Scheduler(config, prefix_caching)
        self.cache = Cache(self.scheduler)
        self.live: list[Sequence] = []
        self.texts: list[list[int]] = []  # of sequences that ended, prompt and output
        self.next_id = 0
        self.num_asked = 0  # prompt tokens
        self.async_scheduling = async_scheduling
        self.unread: list[Sequence] = []

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT),
        max_tokens=st.integers(1, MAX_TOKENS),
        overflow=st.sampled_from(["stop", "shift"]),
        n=st.integers(1, 3),
    )
    def add(self, prompt, max_tokens, overflow, n):
        config = self.scheduler.config
        if config.max_blocks_per_seq > config.num_blocks:  # the engine refuses what may need more
            held = config.num_blocks * config.block_size
            prompt, overflow = prompt[:held], "stop"
            max_tokens = min(max_tokens, held + 1 - len(prompt))
        params = SamplingParams(max_tokens=max_tokens, overflow=overflow)
        for _ in range(n):
            sequence = Sequence(self.next_id, prompt, params, seed=0, max_len=CONTEXT)
            self.num_asked += sequence.num_in_context
            self.next_id += 1
            self.live.append(sequence)
            self.scheduler.add(sequence)

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=3), max_tokens=st.integers(1, 8))
    def reply(self, data, more, max_tokens):
        """The next turn of a chat, or a branch of a text that is still being written."""
        texts = self.texts[-5:] + [sequence.prompt + sequence.output for sequence in self.live]
        if texts:
            text = data.draw(st.sampled_from(texts))
            self.add((text[: CONTEXT - len(more)] + more), max_tokens, "stop", 1)

    @rule(times=st.integers(1, 8))
    def steps(self, times):
        for _ in range(times):
            self.step()
            self.blocks_are_whole()

    def step(self):
        before = {*self.scheduler.prefilling, *self.scheduler.decoding, *self.scheduler.swapped}
        plan = self.scheduler.schedule()
        admitted = [sequence for sequence in self.scheduler.prefilling if sequence not in before]
        self.cache.began.update((sequence.seq_id, self.cache.weights) for sequence in admitted)
        sampled = self.cache.run(plan)
        ending = self.scheduler.advance(plan)
        self.progressed = bool(sampled or plan.prefill or plan.decode or self.unread)
        complete = [sequence for sequence in sampled if sequence.reached_limit]
        full = [sequence for sequence in sampled if sequence.num_computed == CONTEXT]
        assert set(ending) == {*complete, *full}
        for sequence in complete:
            self._finish(sequence)
        read_now = not self.async_scheduling or bool(set(full) - set(complete))
        for sequence in self.unread + (sampled if read_now else []):
            self._read(sequence)
        self.unread = [] if read_now else sampled
        if plan.swap_out:
            event(f"preempted, to {self.scheduler.config.preemption}")
        if any(chunk.start and chunk.start == chunk.sequence.num_computed for chunk in plan.prefill):
            event("prefix hit or later chunk")

    def _read(self, sequence):
        """A sequence, preempted meanwhile or not, learns the token that was sampled for it."""
        if sequence.state is State.FINISHED:
            return
        sequence.append(token_of(sequence, len(sequence.output)))
        if sequence.num_in_context > CONTEXT:
            self.scheduler.shift(sequence)

    @rule()
    def step_while_blocks_are_short(self):
        """Nothing is free, nothing stays cached: whoever needs a block is preempted, or preempts."""
        pool = self.scheduler.pool
        taken = [pool.allocate() for _ in range(pool.num_available)]
        self.step()
        pool.release(taken)

    @rule(data=st.data())
    def abort(self, data):
        if not self.live:
            return
        sequence = data.draw(st.sampled_from(self.live))
        event(f"abort {sequence.state.value}")
        self._finish(sequence)
        self.scheduler.finish(sequence)  # twice is harmless

    @rule()
    def replace_weights(self):
        self.cache.weights += 1
        self.scheduler.reset_prefix_cache()
        assert self.scheduler.pool.num_cached == 0

    def _finish(self, sequence):
        self.scheduler.finish(sequence)
        self.cache.host.pop(sequence.seq_id, None)
        self.live.remove(sequence)
        self.texts.append(sequence.prompt + sequence.output)

    @invariant()
    def blocks_are_whole(self):
        if hasattr(self, "scheduler"):
            running = self.scheduler.prefilling + self.scheduler.decoding
            self.scheduler.pool.check([sequence.held_blocks for sequence in running])
            assert all(len(s.held_blocks) <= self.scheduler.config.max_blocks_per_seq for s in running)
            pool = self.scheduler.pool
            assert pool.num_used + pool.num_available == pool.num_blocks
            size = self.scheduler.config.block_size
            assert all(block >= 0 and len(ids) == size for block, (_, ids) in pool._content.items())
            held = {*running, *self.scheduler.waiting, *self.scheduler.swapped}
            assert held == set(self.live)
            assert all(s.state is State.RUNNING and s.num_computed <= s.num_in_context for s in running)
            assert len(running) <= self.scheduler.config.max_num_seqs
            assert self.scheduler.num_hit_tokens <= self.scheduler.num_prompt_tokens <= self.num_asked

    def teardown(self):
        """Every admitted sequence finishes in bounded steps, and then everything is back."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(MAX_STEPS * (len(self.live) + 1)):
            if not self.live:
                break
            self.step()
            assert self.progressed, "a step did nothing"
            self.blocks_are_whole()
        assert not self.live, "not finished in bounded steps"
        assert is_empty(self.scheduler)
        assert self.scheduler.pool.num_used == 0


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def test_the_youngest_gives_way_and_comes_back_before_others_begin():
    config = EngineConfig(CONTEXT, block_size=4, num_blocks=4, max_num_batched_tokens=16)
    scheduler = Scheduler(config)
    cache = Cache(scheduler)
    params = SamplingParams(max_tokens=9)
    oldest, youngest, waiting = (Sequence(i, [i] * 7, params, seed=0, max_len=CONTEXT) for i in range(3))
    for sequence in (oldest, youngest, waiting):
        scheduler.add(sequence)
    preempted = []
    while youngest.state is not State.FINISHED:
        plan = scheduler.schedule()
        preempted += [swap.seq_id for swap in plan.swap_out]
        sampled = cache.run(plan)
        scheduler.advance(plan)
        for sequence in sampled:
            sequence.append(token_of(sequence, len(sequence.output)))
            if sequence.reached_limit:
                scheduler.finish(sequence)
        assert waiting.state is State.WAITING or oldest.state is State.FINISHED
    assert preempted == [youngest.seq_id]
