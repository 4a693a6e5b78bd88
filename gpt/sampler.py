"""From logits to tokens: gathers each sequence's own parameters into tensors and calls the ops that choose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.gpt.sequence import Sequence
from octavo.kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step chose for one sequence; `top` are the most likely (id, logprob), best first."""

    token_id: int  # -1: the logits were not numbers
    logprob: float
    rank: int = 0  # of the chosen id, 1 the best; 0 unless log-probabilities were asked for
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws one token a sequence; holds the token counts of those with penalties."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self.ops = ops
        self.device = device
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}  # seq_id -> (counts int32, in_prompt bool), [vocab_size]

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """logits `[num_seqs, vocab_size]`, one row a sequence; may be changed in place."""
        raw = logits
        if any(self._needs_change(sequence) for sequence in sequences):
            logits = logits.clone()
            self._change(logits, sequences)
        token_ids, logprobs = self.ops.sample(logits, *self._columns(sequences))
        if logits is not raw:
            chosen = token_ids.clamp(min=0).long().unsqueeze(1)
            logprobs = torch.log_softmax(raw.float(), -1).gather(1, chosen).squeeze(1)
        ids, values = token_ids.tolist(), logprobs.tolist()
        extras = self._top_logprobs(raw, token_ids, sequences)
        for sequence, token_id in zip(sequences, ids, strict=True):
            if sequence.seq_id in self._counts and token_id >= 0:
                self._counts[sequence.seq_id][0][token_id] += 1
        return [Sampled(token_id, value, *extra) for token_id, value, extra in zip(ids, values, extras, strict=True)]

    def forget(self, seq_id: int) -> None:
        self._counts.pop(seq_id, None)

    def _columns(self, sequences: list[Sequence]) -> tuple[Tensor, ...]:
        """`sample`'s per-row arguments after the logits."""
        params = [sequence.params for sequence in sequences]
        kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
        columns = (
            [p.temperature for p in params],
            [max(p.top_k, 0) for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
            [sequence.seed for sequence in sequences],
            [sequence.num_tokens for sequence in sequences],
        )
        return tuple(
            torch.tensor(column, dtype=kind, device=self.device) for column, kind in zip(columns, kinds, strict=True)
        )

    def _needs_change(self, sequence: Sequence) -> bool:
        p = sequence.params
        return p.has_penalties or bool(p.logit_bias) or len(sequence.output) < p.min_tokens

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
            return self._nothing(vocab_size)
        if sequence.seq_id not in self._counts:
            counts = torch.zeros(vocab_size, dtype=torch.int32, device=self.device)
            in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=self.device)
            in_prompt[torch.tensor(sequence.prompt, device=self.device)] = True
            self._counts[sequence.seq_id] = counts, in_prompt
        return self._counts[sequence.seq_id]

    def _nothing(self, vocab_size: int) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(1, dtype=torch.int32, device=self.device)
        return zeros.expand(vocab_size), zeros.bool().expand(vocab_size)

    def _top_logprobs(self, logits: Tensor, token_ids: Tensor, sequences: list[Sequence]) -> list[tuple]:
        """For each row that asks: the chosen id's rank and the most likely ids with their log-probabilities."""
        extras: list[tuple] = [()] * len(sequences)
        rows = [i for i, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        if rows:
            wanted = logits[rows]
            most = max(1, *(sequences[i].params.logprobs or 0 for i in rows))
            ids, values = self.ops.top_logprobs(wanted, min(most, logits.shape[1]))
            chosen = wanted.gather(1, token_ids[rows].clamp(min=0).long().unsqueeze(1))
            ranks = (wanted > chosen).sum(-1) + 1
            for i, rank, id_row, row in zip(rows, ranks.tolist(), ids.tolist(), values.tolist(), strict=True):
                num = sequences[i].params.logprobs
                extras[i] = rank, tuple(zip(id_row[:num], row[:num], strict=True))
        return extras
