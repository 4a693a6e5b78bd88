"""Log-probabilities of tokens, and what the sampler's filters kept: as tensors first, on the host when they are read.

One function makes every log-probability, of sampled tokens, of prompts and of scored texts, out of one row of logits,
so a token's has the same bits wherever it is reported.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.gpt.outputs import Kept
from octavo.gpt.runner.transfer import to_host
from octavo.kernels.ops import Ops, keep_mask, kept_mass, scaled_gap


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log-probability, its rank (1 is the most likely id), and the most likely ids, best first."""

    logprob: float
    rank: int
    entries: tuple[tuple[int, float], ...]  # id, log-probability
    asked: tuple[tuple[int, float, int], ...] = ()  # id, log-probability, rank of ids that the request names
    kept: Kept | None = None  # what the filters left, where the request asks


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """`TokenLogprobs` of some rows, still as tensors."""

    numbers: list[int]  # ids wanted for each row
    logprobs: Tensor  # [num_rows] float32, of the chosen ids
    ranks: Tensor  # [num_rows] int64
    ids: Tensor  # [num_rows, most] int32
    values: Tensor  # [num_rows, most] float32

    @classmethod
    def empty(cls, numbers: list[int], device: torch.device) -> "LogprobTensors":
        """Room for as many rows as there are numbers."""
        num_rows, most = len(numbers), max(numbers)
        return cls(
            numbers,
            torch.empty(num_rows, dtype=torch.float32, device=device),
            torch.empty(num_rows, dtype=torch.int64, device=device),
            torch.empty(num_rows, most, dtype=torch.int32, device=device),
            torch.empty(num_rows, most, dtype=torch.float32, device=device),
        )

    def fill(self, rows: slice, others: "LogprobTensors") -> None:
        """Copy others into these rows; their ids may be fewer, where the vocabulary is."""
        self.logprobs[rows], self.ranks[rows] = others.logprobs, others.ranks
        width = others.ids.shape[1]
        self.ids[rows, :width], self.values[rows, :width] = others.ids, others.values

    def to_host(self) -> "LogprobTensors":
        """Start the copy to the host; it may be read once the device has come that far."""
        return LogprobTensors(self.numbers, *map(to_host, (self.logprobs, self.ranks, self.ids, self.values)))

    def read(self) -> list[TokenLogprobs]:
        rows = zip(self.numbers, *(x.tolist() for x in (self.logprobs, self.ranks, self.ids, self.values)), strict=True)
        return [TokenLogprobs(x, rank, tuple(zip(i[:num], v[:num], strict=True))) for num, x, rank, i, v in rows]


@dataclass(frozen=True, slots=True)
class AskedLogprobs:
    """Log-probabilities and ranks of ids that a request names, in one row."""

    ids: Seq[int]
    logprobs: Tensor  # [num_ids] float32
    ranks: Tensor  # [num_ids] int64

    def to_host(self) -> "AskedLogprobs":
        """Start the copy to the host."""
        return AskedLogprobs(self.ids, to_host(self.logprobs), to_host(self.ranks))

    def read(self) -> tuple[tuple[int, float, int], ...]:
        return tuple(zip(self.ids, self.logprobs.tolist(), self.ranks.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class KeptTensors:
    """What the filters of one row left, as tensors."""

    logits: Tensor  # [vocab_size] float32, what was sampled from: over the temperature, -inf where a filter took the id
    keep: Tensor  # [vocab_size] bool
    mass: Tensor  # [1] float64, of the kept ids before the others were taken

    def to_host(self) -> "KeptTensors":
        """Start the copy to the host of what is reported."""
        return KeptTensors(self.logits, to_host(self.keep), to_host(self.mass))

    def read(self) -> Kept:
        return Kept(int(self.keep.sum()), float(self.mass), np.packbits(self.keep.numpy()).tobytes())


def filtered(
    logits: Tensor, token_id: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> KeptTensors:
    """Filter one row's logits `[vocab_size]` as `ops.sample` does, its columns `[1]`.

    At temperature 0 nothing is filtered, and all that was left is the token.
    """
    is_random = temperature > 0
    row, heat = logits.float().unsqueeze(0), torch.where(is_random, temperature, 1.0).unsqueeze(1)
    scaled, keep = scaled_gap(row, heat), keep_mask(row, heat, top_k, top_p, min_p)
    token = torch.arange(keep.shape[1], dtype=torch.int32, device=keep.device) == token_id
    processed = torch.where(is_random, torch.where(keep, scaled, -torch.inf), row)
    keep, mass = torch.where(is_random, keep, token), torch.where(is_random, kept_mass(scaled, keep), 1.0)
    return KeptTensors(processed[0], keep[0], mass)


def token_logprobs(ops: Ops, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities float32 and ranks int64 of some ids of each row; those of an id of -1 mean nothing.

    logits `[num_rows, vocab_size]`, token_ids and both results `[num_rows, num_ids]`. The greedy choice's
    log-probability is the log of what a softmax divides by, below 0: a pass over the vocabulary that does not rank it,
    with the bits of `ops.top_logprobs`.
    """
    off = torch.zeros(len(logits), dtype=torch.float32, device=logits.device)
    best = ops.sample(logits, off, off.int(), 1 + off, off, off.long(), off.int())[1].unsqueeze(1)
    values, peak = logits.gather(1, token_ids.clamp(min=0).long()), logits.amax(-1, keepdim=True)
    ranks = (logits.unsqueeze(1) > values.unsqueeze(2)).sum(-1) + 1
    return torch.where(values == peak, 0.0, values - peak).float() + best, ranks


def gather_logprobs(ops: Ops, logits: Tensor, token_ids: Tensor, numbers: list[int]) -> LogprobTensors:
    """Gather log-probability and rank of each row's token, and as many of the most likely ids as its number says.

    logits `[num_rows, vocab_size]`, token_ids `[num_rows]`.
    """
    most = min(max(numbers), logits.shape[1])
    if most:
        top = ops.top_logprobs(logits, most)
    else:
        top = token_ids.new_empty(len(numbers), 0), logits.new_empty(len(numbers), 0, dtype=torch.float32)
    logprobs, ranks = token_logprobs(ops, logits, token_ids.unsqueeze(1))
    return LogprobTensors(numbers, logprobs.squeeze(1), ranks.squeeze(1), *top)
