"""Proposer: guesses the next tokens of sequences. A guess costs or saves time, and never changes a token."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import torch

from octavo.gpt.loading.loader import LoadedModel
from octavo.gpt.runner.decode_graph import Capture
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Target:
    """The engine that guesses are for."""

    loaded: LoadedModel
    config: EngineConfig
    device: torch.device
    capture: Capture | None  # how its decode steps become CUDA graphs


class Options(Protocol):
    """What a caller chooses; it is checked when it is made."""

    def proposer(self, target: "Target") -> "Proposer":
        """Return a proposer for an engine; ValueError where it cannot guess for its model."""
        ...


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
