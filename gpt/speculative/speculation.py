"""Speculation: which sequences guess how much in a step, and what became of it."""

from dataclasses import dataclass

import torch

from octavo.gpt.loading.loader import LoadedModel
from octavo.gpt.runner.decode_graph import MAX_CAPTURED_ROWS, Capture
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Plan, Scheduler
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.speculative.proposer import Options, Proposer, Target

MOST_ROWS = {"cpu": MAX_CAPTURED_ROWS, "cuda": 64}  # queries of a step that take little longer than one

SHORTEST_PAUSE, LONGEST_PAUSE = 16, 128  # tokens


@dataclass(eq=False, slots=True)
class Pace:
    """Whether guessing pays for a sequence.

    The score is the mean of accepted guesses, each step weighing as much as all before it, and twice as many tokens are
    guessed at a time, 2 at least. Below one accepted guess a step (a half, if one token at a time is all that is ever
    guessed) the sequence pauses, for 16 tokens and then twice as many each time, up to 128, before it tries once more.
    """

    most: int  # tokens that may be guessed at a time
    score: float = 1.0
    pause: int = SHORTEST_PAUSE
    resumes_at: int = 0  # output tokens

    @property
    def num_tokens(self) -> int:
        """How many to guess the next time."""
        return min(self.most, max(2, int(2 * self.score)))

    def note(self, num_accepted: int, num_output: int) -> None:
        self.score = (self.score + num_accepted) / 2
        if self.score >= min(1, self.most / 2):
            self.pause = SHORTEST_PAUSE
        else:
            self.resumes_at = num_output + self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE)


class Speculation:
    """Asks a proposer for guesses as far as a step has room for them; without a proposer, for none.

    max_rows: queries of a step, guesses included, beyond which nobody guesses: more would not be for free.
    """

    def __init__(self, proposer: Proposer | None = None, max_rows: int = 0) -> None:
        self.proposer = proposer
        self.max_rows = max_rows
        self.num_proposed = 0
        self.num_accepted = 0
        self.num_steps = 0  # of decoding sequences, one each
        self._paces: dict[int, Pace] = {}  # by seq_id

    def extend(self, plan: Plan, scheduler: Scheduler) -> None:
        """Add guesses to the plan's decoding sequences, the oldest first."""
        room = self.max_rows - len(plan.decode)
        if self.proposer is None or room <= 0:
            return
        asked: list[Sequence] = []
        limits: list[int] = []
        for sequence in plan.decode:
            pace = self._pace(sequence, self.proposer.num_tokens)
            limit = min(pace.num_tokens, room, sequence.max_computed - sequence.num_computed - 1)
            if limit > 0 and len(sequence.output) >= pace.resumes_at:
                asked.append(sequence)
                limits.append(limit)
                room -= limit
        if not asked:
            return
        for sequence, guess in zip(asked, self.proposer.propose(asked, limits), strict=True):
            scheduler.look_ahead(plan, sequence, guess)

    def settle(self, sequence: Sequence, num_tokens: int, scheduler: Scheduler) -> bool:
        """Take a decoding sequence's step, which gave it so many tokens: the guesses that were right, and one more.

        Return whether right guesses filled its context or reached its limit.
        """
        self.num_steps += 1
        num_guessed, num_right = len(sequence.guess), num_tokens - 1
        if not num_guessed:
            return False
        self.num_proposed += num_guessed
        self.num_accepted += num_right
        self._paces[sequence.seq_id].note(num_right, len(sequence.output) + num_tokens)
        scheduler.accept(sequence, num_right)
        return num_right > 0 and sequence.num_computed >= sequence.max_computed

    def stats(self) -> dict[str, float]:
        """Tokens proposed and accepted, and what a step of a decoding sequence gave, in tokens."""
        return {
            "tokens_proposed": self.num_proposed,
            "tokens_accepted": self.num_accepted,
            "tokens_per_step": 1 + self.num_accepted / max(self.num_steps, 1),
        }

    def free(self, seq_id: int) -> None:
        """Drop what is kept for a sequence that ended."""
        self._paces.pop(seq_id, None)
        if self.proposer is not None:
            self.proposer.free(seq_id)

    def reset(self) -> None:
        """Drop what is kept for every sequence."""
        self._paces.clear()
        if self.proposer is not None:
            self.proposer.reset()

    def _pace(self, sequence: Sequence, most: int) -> Pace:
        return self._paces.setdefault(sequence.seq_id, Pace(most))


def make_speculation(
    options: Options | None, loaded: LoadedModel, config: EngineConfig, device: torch.device, capture: Capture | None
) -> Speculation:
    """Return the speculation that a caller chose, for an engine of that model; none for None."""
    if options is None:
        return Speculation()
    return Speculation(options.proposer(Target(loaded, config, device, capture)), MOST_ROWS[device.type])
