"""Sequence: one completion on its way, its tokens and where they stand in the cache. Integers only."""

from dataclasses import dataclass, field
from enum import Enum

from octavo.gpt.sampling_params import SamplingParams


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"  # preempted: its blocks are in host memory
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and what was generated from it.

    The engine sees the tokens from `start` on (0 unless the window slid) and calls their positions 0, 1, 2 ...;
    `num_computed` of them have keys and values in the cache, the blocks `block_table`. The first `num_prefill` are
    computed as prefill, later ones one by one: which way a token is computed never depends on the batch.
    """

    seq_id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    window: int  # most tokens a step may see
    eos_ids: tuple[int, ...] = ()
    output: list[int] = field(default_factory=list)
    start: int = 0
    num_computed: int = 0
    num_prefill: int = 0
    block_table: list[int] = field(default_factory=list)
    capacity: int = 0  # tokens its blocks can hold
    age: int = 0  # when it was admitted: the youngest gives way
    block_keys: list[bytes] = field(default_factory=list)  # of the full prompt blocks, as far as they were hashed
    state: State = State.WAITING
    prompt_logprobs: list[tuple] = field(default_factory=list)  # (id, TopLogprobs) from the second id on
    limit: int = 0  # tokens after which it is full

    def __post_init__(self) -> None:
        room = self.window + 1 - len(self.prompt) if self.params.overflow == "stop" else 2**31
        self.limit = min(room, self.params.max_tokens or room)
        self.slide()
        self.num_prefill = self.num_visible

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def num_visible(self) -> int:
        """Tokens the next step sees."""
        return len(self.prompt) + len(self.output) - self.start

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_prefill

    @property
    def is_full(self) -> bool:
        """Whether its last token is drawn, or being drawn."""
        return self.start + self.num_computed + 1 - len(self.prompt) >= self.limit

    @property
    def last_token(self) -> int:
        return self.output[-1] if self.output else self.prompt[-1]

    def tokens(self, first: int, last: int) -> list[int]:
        """The visible tokens at positions first to last - 1."""
        first, last, split = first + self.start, last + self.start, len(self.prompt)
        if last <= split:
            return self.prompt[first:last]
        return self.prompt[first:] + self.output[max(first - split, 0) : last - split]

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end this sequence."""
        return frozenset(self.params.stop_token_ids) | frozenset(() if self.params.ignore_eos else self.eos_ids)

    def changes_logits(self, num_drawn: int) -> bool:
        """Whether the token after the first `num_drawn` is drawn from other logits than the model's."""
        return self.params.changes_logits or num_drawn < self.params.min_tokens

    def biases(self, num_drawn: int) -> dict[int, float]:
        """What to add to the logits of that token, by id: biases, and bans on ending too early."""
        biases = dict(self.params.logit_bias or {})
        if num_drawn < self.params.min_tokens:
            biases.update(dict.fromkeys(self.stop_ids, float("-inf")))
        return biases

    def slide(self) -> None:
        """See at most the last `window` tokens; positions begin at 0 again, so what was cached holds no longer."""
        hidden = self.num_visible - self.window
        if hidden > 0:
            self.start += hidden
            self.num_computed = 0
            self.num_prefill = self.window
