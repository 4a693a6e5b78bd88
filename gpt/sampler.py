"""From logits to tokens: the ops that choose, and what some sequences want besides: penalties, log-probabilities."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.gpt.sequence import Sequence
from octavo.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The chosen id's rank, 1 the best, and the most likely ids with their log-probabilities, best first."""

    rank: int
    entries: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's choices, a row each; token id -1 where the logits were not numbers."""

    sequences: list[Sequence]
    token_ids: list[int]
    logprobs: list[float]
    top: dict[int, TopLogprobs] = field(default_factory=dict)  # by row, for those that asked


class Sampler:
    """Draws one token a sequence; holds the token counts of those with penalties."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self.ops = ops
        self.device = device
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}  # seq_id -> (counts int32, in_prompt bool), [vocab_size]

    def __call__(self, logits: Tensor, sequences: list[Sequence], columns: tuple[Tensor, ...]) -> Sampled:
        """logits `[num_seqs, vocab_size]`, one row a sequence; columns: `sample`'s other arguments."""
        raw = logits
        if any(sequence.changes_logits for sequence in sequences):
            logits = logits.clone()
            self._change(logits, sequences)
        token_ids, logprobs = self.ops.sample(logits, *columns)
        if logits is not raw:
            chosen = token_ids.clamp(min=0).long().unsqueeze(1)
            logprobs = torch.log_softmax(raw.float(), -1).gather(1, chosen).squeeze(1)
        ids = token_ids.tolist()
        if self._counts:
            self._count(ids, sequences)
        return Sampled(sequences, ids, logprobs.tolist(), self._top_logprobs(raw, token_ids, sequences))

    def forget(self, seq_id: int) -> None:
        self._counts.pop(seq_id, None)

    def _count(self, token_ids: list[int], sequences: list[Sequence]) -> None:
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            if sequence.seq_id in self._counts and token_id >= 0:
                self._counts[sequence.seq_id][0][token_id] += 1

    def _change(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Penalties, bias and banned ids, in place."""
        counts, in_prompt = zip(*(self._said(sequence, logits.shape[1]) for sequence in sequences), strict=True)
        biases = [self._biases(sequence) for sequence in sequences]
        width = max(map(len, biases))
        padded = [[*bias.items(), *[(-1, 0.0)] * (width - len(bias))] for bias in biases]
        self.ops.apply_penalties(
            logits,
            torch.stack(counts),
            torch.stack(in_prompt),
            self._floats([sequence.params.repetition_penalty for sequence in sequences]),
            self._floats([sequence.params.presence_penalty for sequence in sequences]),
            self._floats([sequence.params.frequency_penalty for sequence in sequences]),
            torch.tensor([[i for i, _ in row] for row in padded], dtype=torch.int32, device=self.device),
            self._floats([[value for _, value in row] for row in padded]),
        )

    def _floats(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _biases(self, sequence: Sequence) -> dict[int, float]:
        biases = dict(sequence.params.logit_bias or {})
        if len(sequence.output) < sequence.params.min_tokens:
            biases.update(dict.fromkeys(sequence.stop_ids, -torch.inf))
        return biases

    def _said(self, sequence: Sequence, vocab_size: int) -> tuple[Tensor, Tensor]:
        """How often the sequence generated each id, and which ids stand in its prompt."""
        if not sequence.params.has_penalties:
            nothing = torch.zeros(1, dtype=torch.int32, device=self.device).expand(vocab_size)
            return nothing, nothing.bool()
        if sequence.seq_id not in self._counts:
            counts = torch.zeros(vocab_size, dtype=torch.int32, device=self.device)
            in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=self.device)
            in_prompt[torch.tensor(sequence.prompt, device=self.device)] = True
            self._counts[sequence.seq_id] = counts, in_prompt
        return self._counts[sequence.seq_id]

    def _top_logprobs(self, logits: Tensor, token_ids: Tensor, sequences: list[Sequence]) -> dict[int, TopLogprobs]:
        wanted = {row: s.params.logprobs for row, s in enumerate(sequences) if s.params.logprobs is not None}
        if not wanted:
            return {}
        rows = list(wanted)
        return dict(zip(rows, self.top(logits[rows], token_ids[rows], list(wanted.values())), strict=True))

    def top(self, logits: Tensor, token_ids: Tensor, numbers: list[int]) -> list[TopLogprobs]:
        """For each row of logits: where its token ranks, and as many of the most likely ids as its number says."""
        ids, values = self.ops.top_logprobs(logits, min(max(1, *numbers), logits.shape[1]))
        chosen = logits.gather(1, token_ids.clamp(min=0).long().unsqueeze(1))
        ranks = ((logits > chosen).sum(-1) + 1).tolist()
        rows = zip(ranks, numbers, ids.tolist(), values.tolist(), strict=True)
        return [TopLogprobs(rank, tuple(zip(i[:num], v[:num], strict=True))) for rank, num, i, v in rows]
