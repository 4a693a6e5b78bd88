"""Sequence: one completion on its way, its tokens and where they stand in the cache. Integers only."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from octavo.gpt.sampling_params import SamplingParams, as_ids


class State(Enum):
    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"  # preempted: its blocks are in host memory
    FINISHED = "finished"


class Follower(Protocol):
    """Where an output stands in the form that it has to have."""

    @property
    def is_complete(self) -> bool: ...  # nothing but the end can follow

    @property
    def error(self) -> str: ...  # why it cannot be followed any further

    def advance(self, token_id: int) -> None: ...

    def look_ahead(self, token_ids: Iterable[int], words: Any) -> None: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and what was generated from it.

    The model sees the tokens from `context_start` on (0 unless the context was shifted) and calls their positions
    0, 1, 2 ...; `num_computed` of them have keys and values in the cache, in the blocks `block_table`. The first
    `num_prefill` are computed as prefill, later ones one by one: which way a token is computed never depends on the
    batch.
    """

    seq_id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_len: int  # most tokens that a step may see
    eos_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # as tokens: the last is banned where the others are the newest output
    output: list[int] = field(default_factory=list)  # `append` is the only writer
    guide: Follower | None = None  # through the form that the output has to have
    adapter: int = 0  # the number of the adapter that it is computed with; 0: none
    context_start: int = 0
    num_computed: int = 0
    num_prefill: int = 0
    num_cached_tokens: int = 0  # of its first prefill, tokens that other sequences had computed
    guess: list[int] = field(default_factory=list)  # its next tokens, perhaps: the step in progress checks them
    block_table: list[int] = field(default_factory=list)
    num_skipped_blocks: int = 0  # at the table's front, wholly before the sliding window: given back, -1 in the table
    capacity: int = 0  # tokens that its table reaches to
    arrival: int = 0  # when it was first admitted: the youngest gives way
    block_keys: list[bytes] = field(default_factory=list)  # of the full blocks, as far as they were hashed
    num_findable_blocks: int = 0  # at the table's front, that the prefix cache knows of
    is_stale: bool = False  # some of what is computed follows from weights that were replaced: nobody may find it
    state: State = State.NEW
    max_output_tokens: int = 0
    max_computed: int = 0  # computed tokens after which it ends or its context has to be shifted

    def __post_init__(self) -> None:
        room = self.max_len + 1 - len(self.prompt) if self.params.overflow == "stop" else 2**31
        self.max_output_tokens = min(room, self.params.max_tokens or room)
        self.shift()
        self.num_prefill = self.num_in_context

    def append(self, token_id: int) -> None:
        """Take the next generated token."""
        self.output.append(token_id)
        if self.guide is not None:
            self.guide.advance(token_id)

    @property
    def num_in_context(self) -> int:
        """Tokens that the next step sees."""
        return len(self.prompt) + len(self.output) - self.context_start

    @property
    def held_blocks(self) -> list[int]:
        """The blocks of its table that it holds."""
        return self.block_table[self.num_skipped_blocks :]

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_prefill

    @property
    def num_sampled(self) -> int:
        """Output tokens of a running sequence, those included that only the device knows yet."""
        return self.context_start + max(self.num_prefill, self.num_computed + 1) - len(self.prompt)

    @property
    def reached_limit(self) -> bool:
        """Whether its last token is sampled, or being sampled."""
        return self.num_sampled >= self.max_output_tokens

    @property
    def last_token(self) -> int:
        return self.output[-1] if self.output else self.prompt[-1]

    def tokens(self, first: int, last: int) -> list[int]:
        """The tokens at positions first to last - 1 of the context."""
        first, last, split = first + self.context_start, last + self.context_start, len(self.prompt)
        if last <= split:
            return self.prompt[first:last]
        return self.prompt[first:] + self.output[max(first - split, 0) : last - split]

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end this sequence."""
        return frozenset(as_ids(self.params.stop_token_ids)) | frozenset(() if self.params.ignore_eos else self.eos_ids)

    def shift(self) -> None:
        """See at most the last `max_len` tokens: their positions begin at 0 again, so the cache holds none of them."""
        surplus = self.num_in_context - self.max_len
        if surplus > 0:
            self.context_start += surplus
            self.num_computed = 0
            self.num_prefill = self.max_len
        last = len(self.prompt) + self.max_output_tokens - 1 - self.context_start
        self.max_computed = min(self.max_len, last)
