"""Proposers for tests: one that is never right, one that knows the text, and requests of every option."""

import random
from collections.abc import Sequence as Seq
from typing import Any

from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.speculative.speculation import Speculation


class Scripted:
    """Guesses from texts that are known in advance, by seed and number of the prompt's tokens; off by `shift`."""

    num_tokens = 4

    def __init__(self, texts: dict[tuple[int, tuple[int, ...]], list[int]], shift: int = 0) -> None:
        self.texts, self.shift = texts, shift
        self.kept: set[int] = set()

    def propose(self, sequences: Seq[Sequence], limits: Seq[int]) -> list[list[int]]:
        self.kept |= {sequence.seq_id for sequence in sequences}
        return [self._guess(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def free(self, seq_id: int) -> None:
        self.kept.discard(seq_id)

    def reset(self) -> None:
        self.kept.clear()

    def _guess(self, sequence: Sequence, limit: int) -> list[int]:
        text = self.texts.get((sequence.seed, tuple(sequence.prompt)), [])
        done = len(sequence.output)
        return [(token_id + self.shift) % 97 for token_id in text[done : done + limit]]


def eager(speculation: Speculation) -> Speculation:
    """Let every sequence guess all the time, whether it pays or not."""
    pace = speculation._pace
    speculation._pace = lambda *of: _unpaused(pace(*of))  # type: ignore[method-assign]
    return speculation


def _unpaused(pace: Any) -> Any:
    pace.resumes_at, pace.score = 0, pace.most
    return pace


def repeating_prompt(rng: random.Random, longest: int, vocab_size: int = 97) -> list[int]:
    """A few tokens over and over, after some that many requests share."""
    shared = list(range(10, 10 + rng.choice((0, 8, 12))))
    part = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 6))]
    return (shared + part * longest)[: rng.randint(1, longest)]


def many_options(rng: random.Random, seed: int, vocab_size: int = 97, has_text: bool = True) -> SamplingParams:
    """A sampled request with some of the options, each in use some of the time."""
    options: dict[str, Any] = {
        "n": lambda: rng.randint(2, 3),
        "top_k": lambda: rng.choice((2, 5, 40)),
        "top_p": lambda: rng.choice((0.3, 0.9)),
        "min_p": lambda: rng.choice((0.05, 0.3)),
        "repetition_penalty": lambda: rng.choice((0.9, 1.3)),
        "presence_penalty": lambda: rng.uniform(-1, 1),
        "frequency_penalty": lambda: rng.uniform(-1, 1),
        "logit_bias": lambda: {rng.randrange(vocab_size): rng.uniform(-5, 5) for _ in range(3)},
        "allowed_token_ids": lambda: sorted(rng.sample(range(vocab_size), vocab_size // 2)),
        "stop_token_ids": lambda: rng.sample(range(vocab_size), 2),
        "logprobs": lambda: rng.choice((0, 1, 5)),
        "logprob_token_ids": lambda: rng.sample(range(vocab_size), 2),
        "logprobs_mode": lambda: "processed_logprobs",
        "return_kept": lambda: True,
        "prompt_logprobs": lambda: 1,
        "overflow": lambda: "shift",
    }
    if has_text:
        options["stop"] = lambda: [chr(rng.randint(33, 126)) * 2]
        options["bad_words"] = lambda: [chr(rng.randint(33, 126)), "".join(chr(rng.randint(33, 126)) for _ in range(2))]
    chosen = {name: options[name]() for name in rng.sample(sorted(options), rng.randint(0, 4))}
    if "logprob_token_ids" in chosen:
        chosen.pop("logprobs", None)
    max_tokens = rng.choice((1, 3, 8, 24, 50))
    if rng.random() < 0.3:
        chosen["min_tokens"] = rng.randint(1, max_tokens)
    temperature = rng.choice((0.3, 0.8, 1.0, 2.0))
    return SamplingParams(seed=seed, temperature=temperature, max_tokens=max_tokens, **chosen)
