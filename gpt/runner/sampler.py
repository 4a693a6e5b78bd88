"""Sampler: from logits to tokens for sequences that want more than a draw: penalties, biases, log-probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.gpt.scheduler.sequence import Sequence
from octavo.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The chosen id's log-probability and rank, 1 the best; the most likely ids with theirs, best first."""

    logprob: float
    rank: int
    entries: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """`TopLogprobs` of some rows, still as tensors; to the host they go without waiting."""

    numbers: list[int]  # ids wanted, a row each
    logprobs: Tensor  # of the chosen ids, [num_rows]
    ranks: Tensor  # [num_rows]
    ids: Tensor  # [num_rows, most]
    values: Tensor

    def to_host(self) -> "Ranking":
        tensors = (self.logprobs, self.ranks, self.ids, self.values)
        return Ranking(self.numbers, *(tensor.to("cpu", non_blocking=True) for tensor in tensors))

    def read(self) -> list[TopLogprobs]:
        rows = zip(self.numbers, *(x.tolist() for x in (self.logprobs, self.ranks, self.ids, self.values)), strict=True)
        return [TopLogprobs(x, rank, tuple(zip(i[:num], v[:num], strict=True))) for num, x, rank, i, v in rows]


class Sampler:
    """Draws one token a sequence; holds the token counts of those with penalties."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self.ops = ops
        self.device = device
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}  # seq_id -> (counts int32, in_prompt bool), [vocab_size]

    def __call__(
        self, raw: Tensor, sequences: list[Sequence], columns: tuple[Tensor, ...], num_drawn: list[int]
    ) -> tuple[Tensor, dict[int, int], Ranking | None]:
        """Token ids `[num_seqs]`; which rows asked for log-probabilities and for how many; these log-probabilities.

        raw `[num_seqs, vocab_size]` are the model's logits, columns `sample`'s other arguments, num_drawn the tokens
        that each sequence drew before.
        """
        logits = self._changed(raw, sequences, num_drawn)
        token_ids, _ = self.ops.sample(logits, *columns)
        self._count(token_ids, sequences)
        wanted = {row: s.params.logprobs for row, s in enumerate(sequences) if s.params.logprobs is not None}
        if not wanted:
            return token_ids, wanted, None
        rows = list(wanted)
        return token_ids, wanted, self.rank(raw[rows], token_ids[rows], list(wanted.values()))

    def rank(self, logits: Tensor, token_ids: Tensor, numbers: list[int]) -> Ranking:
        """Log-probability and rank of each row's token, and as many of the most likely ids as its number says."""
        chosen = token_ids.clamp(min=0).long().unsqueeze(1)
        logprobs = torch.log_softmax(logits.float(), -1).gather(1, chosen).squeeze(1)
        ranks = (logits > logits.gather(1, chosen)).sum(-1) + 1
        return Ranking(numbers, logprobs, ranks, *self.ops.top_logprobs(logits, min(max(1, *numbers), logits.shape[1])))

    def forget(self, seq_id: int) -> None:
        self._counts.pop(seq_id, None)

    @property
    def num_remembered(self) -> int:
        """Sequences whose counts are held."""
        return len(self._counts)

    def _count(self, token_ids: Tensor, sequences: list[Sequence]) -> None:
        """Note what was drawn, without looking at it."""
        for row, sequence in enumerate(sequences):
            if sequence.seq_id in self._counts:
                token_id = token_ids[row : row + 1]
                self._counts[sequence.seq_id][0].index_add_(0, token_id.clamp(min=0).long(), (token_id >= 0).int())

    def _changed(self, logits: Tensor, sequences: list[Sequence], num_drawn: list[int]) -> Tensor:
        """The logits after penalties, biases and bans; the model's own where nobody has any."""
        rows = [row for row, (s, drawn) in enumerate(zip(sequences, num_drawn, strict=True)) if s.changes_logits(drawn)]
        if not rows:
            return logits
        changed = logits[rows]
        self._change(changed, [sequences[row] for row in rows], [num_drawn[row] for row in rows])
        if len(rows) == len(sequences):
            return changed
        logits = logits.clone()
        logits[rows] = changed
        return logits

    def _change(self, logits: Tensor, sequences: list[Sequence], num_drawn: list[int]) -> None:
        """Penalties, biases and bans, in place."""
        counts, in_prompt = zip(*(self._said(sequence, logits.shape[1]) for sequence in sequences), strict=True)
        biases = [s.biases(drawn) for s, drawn in zip(sequences, num_drawn, strict=True)]
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
