"""Proposer: guesses the next tokens of sequences. A guess costs or saves time, and never changes a token."""

from collections.abc import Sequence as Seq
from typing import Protocol

from octavo.gpt.scheduler.sequence import Sequence


class Proposer(Protocol):
    """What the engine asks for guesses. Every token of a sequence that it is asked about is known to the host."""

    num_tokens: int  # most that it guesses at a time

    def propose(self, sequences: Seq[Sequence], limits: Seq[int]) -> list[list[int]]:
        """Return each sequence's next tokens as it guesses them: at most as many as its limit, none where it has no
        idea."""
        ...

    def free(self, seq_id: int) -> None:
        """Drop what is kept for a sequence that ended."""
        ...

    def reset(self) -> None:
        """Drop what is kept for every sequence."""
        ...
