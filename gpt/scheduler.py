"""Scheduler: who runs next, who waits, who is evicted. Integers only; it never sees a tensor.

First come, first served. A step decodes every running sequence whose prompt is computed and prefills chunks of others.
Chunks are cut at absolute multiples of `max_num_batched_tokens`, so they do not depend on the neighbours. When blocks
run out the youngest sequence gives way: its blocks go to host memory and come back bit for bit.
"""

from collections import deque
from dataclasses import dataclass, field

from octavo.gpt.blocks import ROOT, BlockPool, chain_key
from octavo.gpt.config import EngineConfig
from octavo.gpt.sequence import Sequence, State


@dataclass(frozen=True)
class Chunk:
    """Visible tokens `start` to `end` - 1 of a sequence, to be computed as prefill."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True)
class Swap:
    """The content of a sequence's blocks, on its way to host memory or back."""

    seq_id: int
    blocks: list[int]


@dataclass(frozen=True)
class Plan:
    """One step. Swaps out happen first, then swaps in, then prefill, then decode."""

    swap_out: list[Swap] = field(default_factory=list)
    swap_in: list[Swap] = field(default_factory=list)
    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Owns the block pool and the queues; `schedule` plans a step, `advance` takes note that it was computed."""

    def __init__(self, config: EngineConfig, enable_prefix_caching: bool = True) -> None:
        self.config = config
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(config.num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.swapped: deque[Sequence] = deque()  # oldest first
        self.num_preempted = 0
        self.num_prompt_tokens = 0
        self.num_hit_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running or self.swapped)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def schedule(self) -> Plan:
        """The next step; empty when there is nothing to do."""
        plan = Plan()
        self._grow_decoding(plan)
        if not plan.swap_out:
            self._resume(plan)
        budget = self.config.max_num_batched_tokens
        for sequence in self.running:
            if sequence.is_prefilling:
                budget = self._add_chunk(plan, sequence, budget)
        if not self.swapped:
            self._admit(plan, budget)
        plan.decode.extend(sequence for sequence in self.running if not sequence.is_prefilling)
        return plan

    def advance(self, plan: Plan) -> None:
        """Take note of computed tokens, and make full prompt blocks findable."""
        for chunk in plan.prefill:
            chunk.sequence.num_computed = chunk.end
            if self.enable_prefix_caching and chunk.sequence.start == 0:
                self._publish(chunk)
        for sequence in plan.decode:
            sequence.num_computed += 1

    def finish(self, sequence: Sequence) -> None:
        """Give everything back, whatever the sequence was doing; again is harmless."""
        queues: dict[State, deque[Sequence] | list[Sequence]] = {
            State.WAITING: self.waiting,
            State.RUNNING: self.running,
            State.SWAPPED: self.swapped,
        }
        if sequence.state in queues:
            queues[sequence.state].remove(sequence)
        self._release(sequence)
        sequence.state = State.FINISHED

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        sequence.block_table = []

    def _grow_decoding(self, plan: Plan) -> None:
        """Room for each running sequence's tokens, oldest first; the youngest give way where there is none."""
        for sequence in list(self.running):
            if sequence.start and sequence.num_computed == 0:
                self._release(sequence)  # the window slid: others may share what it would overwrite
            needed = self.blocks_for(sequence.num_visible)
            while sequence.state is State.RUNNING and len(sequence.block_table) < needed:
                if self.pool.num_available:
                    sequence.block_table.append(self.pool.allocate())
                else:
                    self._preempt(self.running[-1], plan)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """The youngest gives way: a computed prompt is kept in host memory, an unfinished one is computed again."""
        self.num_preempted += 1
        self.running.remove(sequence)
        if sequence.is_prefilling:
            sequence.num_computed = 0
            sequence.state = State.WAITING
            self.waiting.appendleft(sequence)
        else:
            held = self.blocks_for(sequence.num_computed)
            plan.swap_out.append(Swap(sequence.seq_id, sequence.block_table[:held]))
            sequence.state = State.SWAPPED
            self.swapped.appendleft(sequence)
        self._release(sequence)

    def _resume(self, plan: Plan) -> None:
        """Bring preempted sequences back, oldest first, each with room for its next token."""
        while self.swapped and len(self.running) < self.config.max_num_seqs:
            sequence = self.swapped[0]
            needed = self.blocks_for(sequence.num_visible)
            if needed > self.pool.num_available:
                return
            sequence.block_table = [self.pool.allocate() for _ in range(needed)]
            held = self.blocks_for(sequence.num_computed)
            plan.swap_in.append(Swap(sequence.seq_id, sequence.block_table[:held]))
            self._run(self.swapped.popleft())

    def _admit(self, plan: Plan, budget: int) -> None:
        """Start waiting sequences in order, as long as their prompts have blocks and the step has room."""
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            leader = sequence.leader
            if leader is not None and not leader.output and leader.state is not State.FINISHED:
                return  # its prompt blocks will be shared once they are computed
            if not self._allocate_prompt(sequence):
                return
            sequence.leader = None
            self._run(self.waiting.popleft())
            budget = self._add_chunk(plan, sequence, budget)

    def _run(self, sequence: Sequence) -> None:
        sequence.state = State.RUNNING
        self.running.append(sequence)

    def _add_chunk(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """Plan the sequence's next chunk if the budget holds it whole; returns what is left."""
        size = self.config.max_num_batched_tokens
        start = sequence.num_computed
        end = min((start // size + 1) * size, sequence.num_prefill)
        if end - start > budget:
            return 0  # who came later does not overtake
        plan.prefill.append(Chunk(sequence, start, end))
        return budget - (end - start)

    def _allocate_prompt(self, sequence: Sequence) -> bool:
        """Blocks for the visible tokens, shared as far as a known prefix reaches; False if there are too few."""
        shared = self._known_prefix(sequence)
        for block in shared:
            self.pool.share(block)
        needed = self.blocks_for(sequence.num_prefill) - len(shared)
        if needed > self.pool.num_available:
            self.pool.release(shared)
            return False
        sequence.block_table = shared + [self.pool.allocate() for _ in range(needed)]
        sequence.num_computed = len(shared) * self.config.block_size
        self.num_prompt_tokens += sequence.num_prefill
        self.num_hit_tokens += sequence.num_computed
        return True

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold the first tokens of the prompt; the last token is always computed."""
        if not self.enable_prefix_caching or sequence.start or sequence.params.prompt_logprobs is not None:
            return []
        size, key, blocks = self.config.block_size, ROOT, []
        for first in range(0, sequence.num_prefill - size, size):
            token_ids = sequence.tokens(first, first + size)
            key = chain_key(key, token_ids)
            block = self.pool.find(key, token_ids)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _publish(self, chunk: Chunk) -> None:
        size, sequence = self.config.block_size, chunk.sequence
        keys = sequence.block_keys
        for index in range(len(keys), chunk.end // size):
            token_ids = sequence.tokens(index * size, (index + 1) * size)
            keys.append(chain_key(keys[-1] if keys else ROOT, token_ids))
            self.pool.publish(sequence.block_table[index], keys[-1], token_ids)
