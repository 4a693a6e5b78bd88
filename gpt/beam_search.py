"""Beam search: keep the likeliest unfinished texts, widen each by its likeliest next tokens, collect those that end.

The rules are transformers', so that the beams are the same: each step ranks twice as many continuations as there are
beams (more with several end tokens); one that ends counts only if it ranks among the first `beam_width`; a finished
text's score is its log-probability over its length to the power `length_penalty`. Each step adds each beam as a request
for one token; the prefix cache computes what beams have in common once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

Continuations = list[tuple[int, float]]  # token id, log-probability; best first
Expand = Callable[[list[list[int]], int], list[Continuations]]  # (texts, how many) -> the likeliest next tokens of each


@dataclass(frozen=True)
class Beam:
    """A continuation of the prompt; finished beams are ranked by `score`."""

    token_ids: list[int]
    cumulative_logprob: float
    score: float = -math.inf
    text: str | None = None  # of finished beams, where the model has a tokenizer


@dataclass
class BeamSearch:
    """The search from one prompt; `step` until `done`, then `finished` holds the beams, best first."""

    prompt: list[int]
    beam_width: int
    max_tokens: int
    length_penalty: float
    early_stopping: bool | str
    eos_ids: tuple[int, ...]
    running: list[Beam] = field(default_factory=lambda: [Beam([], 0.0)])
    finished: list[Beam] = field(default_factory=list)
    done: bool = False

    def step(self, continuations: list[Continuations]) -> None:
        """Widen each running beam by its continuations, and keep the best."""
        length = len(self.running[0].token_ids) + 1
        ranked = sorted(
            (
                Beam([*beam.token_ids, token_id], beam.cumulative_logprob + logprob)
                for beam, each in zip(self.running, continuations, strict=True)
                for token_id, logprob in each
            ),
            key=lambda beam: -beam.cumulative_logprob,
        )[: self.num_candidates]
        ended = [length == self.max_tokens or beam.token_ids[-1] in self.eos_ids for beam in ranked]
        self._collect([beam for beam, end in zip(ranked[: self.beam_width], ended, strict=False) if end], length)
        self.running = [beam for beam, end in zip(ranked, ended, strict=True) if not end][: self.beam_width]
        self.done = not self.running or not self._may_improve(length)

    def results(self, decode: Callable[[list[int]], str] | None) -> list[Beam]:
        """Return the finished beams, best first, with their texts."""
        return [beam if decode is None else replace(beam, text=decode(beam.token_ids)) for beam in self.finished]

    @property
    def num_candidates(self) -> int:
        return (1 + max(len(self.eos_ids), 1)) * self.beam_width

    @property
    def is_full(self) -> bool:
        return len(self.finished) == self.beam_width

    def _collect(self, ended: list[Beam], length: int) -> None:
        scored = [
            Beam(beam.token_ids, beam.cumulative_logprob, beam.cumulative_logprob / length**self.length_penalty)
            for beam in ended
        ]
        self.finished = sorted(self.finished + scored, key=lambda beam: -beam.score)[: self.beam_width]

    def _may_improve(self, length: int) -> bool:
        """Whether a running beam may still beat the worst finished one, by the rule of `early_stopping`."""
        if not self.is_full:
            return True
        if self.early_stopping is True:
            return False
        longest = self.max_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.running[0].cumulative_logprob / longest**self.length_penalty > self.finished[-1].score


def check_options(beam_width: int, max_tokens: int, length_penalty: float, early_stopping: bool | str) -> None:
    """Raise ValueError naming the option that makes no sense."""
    for name, value, most in (("beam_width", beam_width, 256), ("max_tokens", max_tokens, 2**31 - 1)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{name} must be an integer in [1, {most}], not {value!r}")
    if not isinstance(length_penalty, int | float) or not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, not {length_penalty!r}")
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f"early_stopping must be True, False or 'never', not {early_stopping!r}")


def search(
    prompts: list[list[int]],
    beam_width: int,
    max_tokens: int,
    room: int,
    rules: tuple[float, bool | str],
    eos_ids: tuple[int, ...],
    expand: Expand,
) -> list[BeamSearch]:
    """The searches from these prompts, at their ends; rules are the length penalty and when to stop early.

    No text gets longer than `room`.
    """
    lengths = [max(min(max_tokens, room - len(prompt)), 1) for prompt in prompts]
    searches = [
        BeamSearch(prompt, beam_width, length, *rules, eos_ids) for prompt, length in zip(prompts, lengths, strict=True)
    ]
    run(searches, expand)
    return searches


def run(searches: list[BeamSearch], expand: Expand) -> None:
    """Run all searches to their ends, together."""
    while open_searches := [search for search in searches if not search.done]:
        texts = [search.prompt + beam.token_ids for search in open_searches for beam in search.running]
        found = iter(expand(texts, max(search.num_candidates for search in open_searches)))
        for search in open_searches:
            search.step([next(found) for _ in search.running])
