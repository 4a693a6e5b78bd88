"""Scheduler: who runs next, who waits, who is evicted. Integers only; it never sees a tensor.

First come, first served. A step decodes every running sequence whose prompt is computed and prefills chunks of others.
Chunks are cut at absolute multiples of `max_num_batched_tokens`, so they do not depend on the neighbours. When blocks
run out the youngest sequence gives way: its blocks go to host memory and come back bit for bit, or, by the choice of
`preemption="recompute"`, it waits again, and what it said is computed as if it were prompt.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from octavo.gpt.scheduler.block_pool import BlockPool
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.prefix_cache import Prefixes
from octavo.gpt.scheduler.sequence import Sequence, State


@dataclass(frozen=True)
class Chunk:
    """Visible tokens `start` to `end` - 1 of a sequence, to be computed as prefill."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True)
class Swap:
    """The content of a sequence's blocks, on its way to host memory or back; no blocks where nothing is kept."""

    seq_id: int
    blocks: list[int]


@dataclass(frozen=True)
class Plan:
    """One step. Swaps out happen first, then swaps in, then decode and prefill."""

    swap_out: list[Swap] = field(default_factory=list)
    swap_in: list[Swap] = field(default_factory=list)
    grown: list[Sequence] = field(default_factory=list)  # decoding sequences with a new block
    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.swap_out or self.swap_in or self.prefill or self.decode)


class Scheduler:
    """Owns the block pool and the queues; `schedule` plans a step, `advance` takes note that it was computed."""

    def __init__(self, config: EngineConfig, enable_prefix_caching: bool = True) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.prefixes = Prefixes(self.pool, config.block_size, enable_prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []  # running, some of the prompt still to be computed; oldest first
        self.decoding: list[Sequence] = []  # running, one token a step
        self.swapped: deque[Sequence] = deque()  # oldest first
        self._ages = count(1)
        self.num_preempted = 0
        self.num_prompt_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.prefilling or self.decoding or self.swapped)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def schedule(self) -> Plan:
        """The next step; empty when there is nothing to do."""
        plan = Plan()
        needy = [s for s in self.prefilling if not s.block_table]
        needy += [s for s in self.decoding if s.num_computed >= s.capacity]
        if needy:
            self._grow(sorted(needy, key=_age), plan)
        if self.swapped and not plan.swap_out:
            self._resume(plan)
        plan.decode.extend(self.decoding)
        budget = self.config.max_num_batched_tokens
        for sequence in self.prefilling:
            budget = self._add_chunk(plan, sequence, budget)
        if self.waiting and not self.swapped and not plan.swap_out:
            self._admit(plan, budget)
        return plan

    def advance(self, plan: Plan) -> None:
        """Take note of computed tokens, and make full prompt blocks findable."""
        for sequence in plan.decode:
            sequence.num_computed += 1
        for chunk in plan.prefill:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self.prefixes.publish(sequence, chunk.start, chunk.end)
            if not sequence.is_prefilling:
                self.prefilling.remove(sequence)
                self.decoding.append(sequence)

    def slide(self, sequence: Sequence) -> None:
        """Compute the sequence's window anew, in blocks of its own: others may share what it would overwrite."""
        self.decoding.remove(sequence)
        self._release(sequence)
        insort(self.prefilling, sequence, key=_age)

    def finish(self, sequence: Sequence) -> None:
        """Give everything back, whatever the sequence was doing; again is harmless."""
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.SWAPPED:
            self.swapped.remove(sequence)
        elif sequence.state is State.RUNNING:
            self._stop(sequence)
        self._release(sequence)
        sequence.state = State.FINISHED

    def _stop(self, sequence: Sequence) -> None:
        (self.prefilling if sequence in self.prefilling else self.decoding).remove(sequence)

    def _blocks_needed(self, sequence: Sequence) -> int:
        """For the tokens of its next step; the newest may be known only to the device yet."""
        return self.blocks_for(max(sequence.num_visible, sequence.num_computed + 1))

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.capacity = 0

    def _hold(self, sequence: Sequence, blocks: list[int]) -> None:
        sequence.block_table += blocks
        sequence.capacity = len(sequence.block_table) * self.config.block_size

    def _grow(self, needy: list[Sequence], plan: Plan) -> None:
        """Room for each one's next tokens, oldest first; the youngest of all give way where there is none."""
        for sequence in needy:
            needed = self._blocks_needed(sequence)
            while sequence.state is State.RUNNING and len(sequence.block_table) < needed:
                if self.pool.num_available:
                    self._hold(sequence, [self.pool.allocate()])
                else:
                    self._preempt(max((*self.prefilling, *self.decoding), key=_age), plan)
            if sequence.state is State.RUNNING and not sequence.is_prefilling:
                plan.grown.append(sequence)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """The youngest gives way: what it computed is kept in host memory, an unfinished prompt is computed again."""
        self.num_preempted += 1
        self._stop(sequence)
        swaps = self.config.preemption == "swap"
        if not sequence.is_prefilling:
            kept = self.blocks_for(sequence.num_computed) if swaps else 0
            plan.swap_out.append(Swap(sequence.seq_id, sequence.block_table[:kept]))
        if swaps and not sequence.is_prefilling:
            sequence.state = State.SWAPPED
            self.swapped.appendleft(sequence)
        else:
            self._wait_again(sequence)
        if sequence in plan.grown:
            plan.grown.remove(sequence)
        self._release(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be computed from its first token."""
        sequence.num_computed = 0
        sequence.prompt_logprobs = []  # they come again with the prompt
        sequence.state = State.WAITING
        self.waiting.appendleft(sequence)

    def _resume(self, plan: Plan) -> None:
        """Bring preempted sequences back, oldest first, each with room for its next token."""
        while self.swapped and self.num_running < self.config.max_num_seqs:
            sequence = self.swapped[0]
            needed = self._blocks_needed(sequence)
            if needed > self.pool.num_available:
                return
            self._hold(sequence, [self.pool.allocate() for _ in range(needed)])
            held = self.blocks_for(sequence.num_computed)
            plan.swap_in.append(Swap(sequence.seq_id, sequence.block_table[:held]))
            sequence.state = State.RUNNING
            self.decoding.append(self.swapped.popleft())

    def _admit(self, plan: Plan, budget: int) -> None:
        """Start waiting sequences in order, as long as their prompts have blocks and the step has room."""
        while self.waiting and budget > 0 and self.num_running < self.config.max_num_seqs:
            sequence = self.waiting[0]
            sequence.num_prefill = sequence.num_visible
            shared = self.prefixes.known(sequence)
            if self.prefixes.is_coming(sequence, len(shared), self.prefilling):
                return  # computed once, then shared
            if not self._allocate_prompt(sequence, shared):
                return
            sequence.state = State.RUNNING
            sequence.age = sequence.age or next(self._ages)
            self.prefilling.append(self.waiting.popleft())
            budget = self._add_chunk(plan, sequence, budget)

    def _add_chunk(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """Plan the sequence's next chunk if the budget holds it whole; returns what is left."""
        size = self.config.max_num_batched_tokens
        start = sequence.num_computed
        end = min((start // size + 1) * size, sequence.num_prefill)
        if end - start > budget:
            return 0  # who came later does not overtake
        plan.prefill.append(Chunk(sequence, start, end))
        return budget - (end - start)

    def _allocate_prompt(self, sequence: Sequence, shared: list[int]) -> bool:
        """Blocks for the visible tokens, the first of them shared; False if there are too few."""
        for block in shared:
            self.pool.share(block)
        needed = self.blocks_for(sequence.num_prefill) - len(shared)
        if needed > self.pool.num_available:
            self.pool.release(shared)
            return False
        self._hold(sequence, shared + [self.pool.allocate() for _ in range(needed)])
        sequence.num_computed = len(shared) * self.config.block_size
        if not sequence.age:  # what a preempted sequence finds of its own is no hit
            self.num_prompt_tokens += sequence.num_prefill
            self.num_hit_tokens += sequence.num_computed
        return True


def _age(sequence: Sequence) -> int:
    return sequence.age
