"""Scheduler: who runs next, who waits, who is preempted. Integers only; it never sees a tensor.

First come, first served. A step decodes every running sequence whose prompt is computed and prefills chunks of others.
Chunks are cut at absolute multiples of `max_num_batched_tokens`, so they do not depend on the neighbours. When blocks
run out the youngest sequence is preempted: its blocks go to host memory and come back bit for bit, or it waits again,
and what the prefix cache has lost of its prompt and output is computed anew as if all were prompt; `_swaps` chooses.

Where every layer has a sliding window, a sequence holds the blocks of the widest window and of its next chunk; those
before go back to the pool as soon as no later token sees them.
"""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from itertools import count, takewhile

from octavo.gpt.scheduler.block_pool import BlockPool
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.prefix_cache import PrefixCache
from octavo.gpt.scheduler.sequence import Sequence, State

NO_BLOCK = -1


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` - 1 of a sequence's context, to be computed as prefill."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether the sequence's prefill is complete after it, so that the step samples a token."""
        return self.end == self.sequence.num_prefill


@dataclass(frozen=True)
class Swap:
    """A sequence's blocks, whose content goes to host memory or comes back; no blocks where nothing is kept."""

    seq_id: int
    blocks: list[int]


@dataclass(frozen=True)
class Plan:
    """One step. Swaps out happen first, then swaps in, then decode and prefill."""

    swap_out: list[Swap] = field(default_factory=list)
    swap_in: list[Swap] = field(default_factory=list)
    new_blocks: list[Sequence] = field(default_factory=list)  # decoding sequences whose block table grew
    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.swap_out or self.swap_in or self.prefill or self.decode)


class Scheduler:
    """Owns the block pool and the queues; `schedule` plans a step, `advance` notes that it was started."""

    def __init__(self, config: EngineConfig, enable_prefix_caching: bool = True) -> None:
        self.config = config
        self.enable_prefix_caching = enable_prefix_caching
        self._arrivals = count(1)
        self.num_preempted = 0
        self.num_prompt_tokens = 0
        self.num_hit_tokens = 0
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and what the cache holds; what was counted stays."""
        self.pool = BlockPool(self.config.num_blocks)
        self.prefix_cache = PrefixCache(self.pool, self.config.block_size, self.enable_prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []  # running, some of the prompt still to be computed; oldest first
        self.decoding: list[Sequence] = []  # running, one token a step
        self.swapped: deque[Sequence] = deque()  # oldest first

    def reset_prefix_cache(self) -> None:
        """Let nothing be found any more, nor what running sequences fill later: it follows from what they hold now."""
        self.pool.reset()
        for sequence in (*self.prefilling, *self.decoding, *self.swapped):
            sequence.is_stale = True

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def add(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        self.waiting.append(sequence)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def schedule(self) -> Plan:
        """Plan the next step; an empty plan when there is nothing to do."""
        plan = Plan()
        short_of_blocks = [s for s in self.prefilling if len(s.block_table) < self._blocks_needed(s)]
        short_of_blocks += [s for s in self.decoding if s.num_computed >= s.capacity]
        if short_of_blocks:
            for sequence in short_of_blocks:  # the blocks that it has are full
                self.prefix_cache.insert(sequence)
            self._allocate_slots(sorted(short_of_blocks, key=_arrival), plan)
        if self.swapped and not plan.swap_out:
            self._resume(plan)
        plan.decode.extend(self.decoding)
        budget = self.config.max_num_batched_tokens
        for sequence in self.prefilling:
            budget = self._add_chunk(plan, sequence, budget)
        if self.waiting and not self.swapped and not plan.swap_out:
            self._admit(plan, budget)
        return plan

    def look_ahead(self, plan: Plan, sequence: Sequence, guess: list[int]) -> None:
        """Let the plan's step check a guess of the decoding sequence's tokens after its newest, as far as free blocks
        hold them: nobody gives way to a guess."""
        most = sequence.num_skipped_blocks + self.config.max_blocks_per_seq
        needed = min(self.blocks_for(sequence.num_computed + 1 + len(guess)), most)
        missing = min(needed - len(sequence.block_table), self.pool.num_available)
        if missing > 0:
            self.prefix_cache.insert(sequence)
            self._hold(sequence, [self.pool.allocate() for _ in range(missing)])
            plan.new_blocks.append(sequence)
        sequence.guess = guess[: max(0, sequence.capacity - sequence.num_computed - 1)]

    def accept(self, sequence: Sequence, num_accepted: int) -> None:
        """Count guesses that were right as computed tokens."""
        sequence.num_computed += num_accepted
        sequence.guess = []

    def advance(self, plan: Plan) -> list[Sequence]:
        """Count the plan's tokens as computed, cache full prompt blocks, and give back what no later token sees.

        Return the sequences that cannot go on as they are: each samples its last token in this step, or its context
        has to be shifted once the token is known.
        """
        sampled = list(plan.decode)
        for sequence in plan.decode:
            sequence.num_computed += 1
        for chunk in plan.prefill:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self.prefix_cache.insert(sequence)
            if chunk.is_last:
                self.prefilling.remove(sequence)
                self.decoding.append(sequence)
                sampled.append(sequence)
        if self.config.sliding_window:
            for sequence in (*plan.decode, *(chunk.sequence for chunk in plan.prefill)):
                self._skip_blocks(sequence)
        return [sequence for sequence in sampled if sequence.num_computed >= sequence.max_computed]

    def shift(self, sequence: Sequence) -> None:
        """Shift the sequence's context; it is computed anew in blocks of its own, since the old ones may be shared."""
        self._release(sequence)
        sequence.shift()
        self.decoding.remove(sequence)
        insort(self.prefilling, sequence, key=_arrival)

    def finish(self, sequence: Sequence) -> None:
        """Give everything back, whatever the sequence was doing; a second call changes nothing."""
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
        """How long the sequence's table has to be for its next step: for all of its tokens, or as far as it may be.

        Its newest token may be known only to the device yet.
        """
        whole = self.blocks_for(max(sequence.num_in_context, sequence.num_computed + 1))
        return min(whole, sequence.num_skipped_blocks + self.config.max_blocks_per_seq)

    def _skip_blocks(self, sequence: Sequence) -> None:
        """Give back the blocks wholly before what the sequence's next token sees; -1 stands in the table for them.

        A table without blocks yet begins with as many -1.
        """
        first, window = sequence.num_skipped_blocks, self.config.sliding_window
        last = max(0, sequence.num_computed + 1 - window) // self.config.block_size if window else 0
        self.pool.release(sequence.block_table[first:last])
        sequence.block_table[first:last] = [NO_BLOCK] * (last - first)
        sequence.num_skipped_blocks = last

    def _release(self, sequence: Sequence) -> None:
        self.prefix_cache.insert(sequence)
        self.pool.release(sequence.held_blocks)
        sequence.block_table = []
        sequence.num_skipped_blocks = sequence.capacity = sequence.num_findable_blocks = 0

    def _hold(self, sequence: Sequence, blocks: list[int]) -> None:
        sequence.block_table += blocks
        sequence.capacity = len(sequence.block_table) * self.config.block_size

    def _allocate_slots(self, short_of_blocks: list[Sequence], plan: Plan) -> None:
        """Give each sequence room for its next tokens, oldest first; where there is none, preempt the youngest."""
        for sequence in short_of_blocks:
            needed = self._blocks_needed(sequence)
            while sequence.state is State.RUNNING and len(sequence.block_table) < needed:
                if self.pool.num_available:
                    self._hold(sequence, [self.pool.allocate()])
                else:
                    self._preempt(max((*self.prefilling, *self.decoding), key=_arrival), plan)
            if sequence.state is State.RUNNING and not sequence.is_prefilling:
                plan.new_blocks.append(sequence)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """Take the sequence's blocks: their content is kept in host memory, or computed again from the text."""
        self.num_preempted += 1
        self._stop(sequence)
        kept = sequence.block_table[sequence.num_skipped_blocks : self.blocks_for(sequence.num_computed)]
        swaps = not sequence.is_prefilling and self._swaps(sequence, kept)
        if not sequence.is_prefilling:
            plan.swap_out.append(Swap(sequence.seq_id, kept if swaps else []))
        if sequence in plan.new_blocks:
            plan.new_blocks.remove(sequence)
        self._release(sequence)
        if swaps:
            sequence.state = State.SWAPPED
            self.swapped.appendleft(sequence)
        else:
            sequence.num_computed = 0
            sequence.state = State.WAITING
            self.waiting.appendleft(sequence)

    def _swaps(self, sequence: Sequence, kept: list[int]) -> bool:
        """Whether these blocks of the sequence go to host memory, rather than that they are computed again.

        They do where that is faster, if those that nobody else holds were lost meanwhile: blocks are short. Host memory
        never holds more of them than the cache has, as it would where many sequences share their prompt.
        """
        if self.config.preemption != "auto":
            return self.config.preemption == "swap"
        if sum(self.blocks_for(other.num_computed) for other in self.swapped) + len(kept) > self.config.num_blocks:
            return False
        shared = 0 if sequence.num_skipped_blocks else sum(1 for _ in takewhile(self.pool.is_shared, kept))
        anew = sequence.num_in_context - shared * self.config.block_size
        return anew * self.config.recompute_cost > len(kept) * self.config.block_size

    def _resume(self, plan: Plan) -> None:
        """Bring preempted sequences back, oldest first, each with room for its next token."""
        while self.swapped and self.num_running < self.config.max_num_seqs:
            sequence = self.swapped[0]
            self._skip_blocks(sequence)
            if not self._allocate(sequence):
                return
            kept = self.blocks_for(sequence.num_computed)
            plan.swap_in.append(Swap(sequence.seq_id, sequence.block_table[sequence.num_skipped_blocks : kept]))
            sequence.state = State.RUNNING
            self.decoding.append(self.swapped.popleft())

    def _admit(self, plan: Plan, budget: int) -> None:
        """Start waiting sequences in order, as long as their prompts have blocks and the step has room."""
        while self.waiting and budget > 0 and self.num_running < self.config.max_num_seqs:
            sequence = self.waiting[0]
            sequence.num_prefill = sequence.num_in_context
            matched = self.prefix_cache.match(sequence)
            if self.prefix_cache.is_pending(sequence, len(matched), self.prefilling):
                return  # the next block is computed once, then shared
            if not self._allocate_prompt(sequence, matched):
                return
            sequence.state = State.RUNNING
            sequence.arrival = sequence.arrival or next(self._arrivals)
            self.prefilling.append(self.waiting.popleft())
            budget = self._add_chunk(plan, sequence, budget)

    def _add_chunk(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """Plan the sequence's next chunk if the budget holds all of it; return what is left."""
        size = self.config.max_num_batched_tokens
        start = sequence.num_computed
        end = min((start // size + 1) * size, sequence.num_prefill)
        if end - start > budget:
            return 0  # a later arrival must not overtake
        plan.prefill.append(Chunk(sequence, start, end))
        return budget - (end - start)

    def _allocate_prompt(self, sequence: Sequence, matched: list[int]) -> bool:
        """Give the sequence blocks for its context, the first of them shared; False if there are too few."""
        for block in matched:
            self.pool.touch(block)
        sequence.block_table, sequence.num_computed = matched, len(matched) * self.config.block_size
        sequence.num_findable_blocks, sequence.is_stale = len(matched), False
        self._skip_blocks(sequence)
        if not self._allocate(sequence):
            sequence.num_computed = 0
            return False
        if not sequence.arrival:  # a preempted sequence that rereads its own blocks does not count as a prefix hit
            self.num_prompt_tokens += sequence.num_prefill
            self.num_hit_tokens += sequence.num_computed
            sequence.num_cached_tokens = sequence.num_computed
        return True

    def _allocate(self, sequence: Sequence) -> bool:
        """Make the sequence's table long enough for its next step; if there are too few blocks, it holds none."""
        missing = self._blocks_needed(sequence) - len(sequence.block_table)
        if missing > self.pool.num_available:
            self._release(sequence)
            return False
        self._hold(sequence, [self.pool.allocate() for _ in range(missing)])
        return True


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
