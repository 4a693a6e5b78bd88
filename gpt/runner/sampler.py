"""Sampler: from hidden states to token ids, and all that a request may ask for on the way.

The three ways to get there are `SampleMode`'s. The first two run on the device alone and can be captured; in the third
the host takes part between logits and sample, with penalties, biases, bans, log-probabilities and forms of the output.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from octavo.gpt.models.base import Model
from octavo.gpt.runner.logit_masks import LogitMasks, has_masks
from octavo.gpt.runner.transfer import to_device, to_host
from octavo.gpt.sampling_params import SamplingParams, as_ids
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.structured.masks import allowed_words


class SampleMode(IntEnum):
    """How a step gets from hidden states to token ids; a higher mode also serves what a lower one does."""

    FUSED = 0  # the LM head and the sample are one op
    FILTERED = 1  # logits, then a sample that looks at top_k, top_p and min_p
    LOGITS = 2  # logits, which the host changes or reports


def changes_logits(params: SamplingParams, num_sampled: int) -> bool:
    """Whether the token after the first `num_sampled` is sampled from other logits than the model's."""
    has_bias = bool(params.logit_bias) or num_sampled < params.min_tokens
    return params.has_penalties or has_bias or has_masks(params)


def sample_mode(params: SamplingParams) -> SampleMode:
    """Return the lowest mode that serves every token of a request; filters never remove a greedy row's choice."""
    if changes_logits(params, 0) or params.reports_logprobs or params.structured is not None:
        return SampleMode.LOGITS
    filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return SampleMode.FILTERED if filtered and params.temperature > 0 else SampleMode.FUSED


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log-probability, its rank (1 is the most likely id), and the most likely ids, best first."""

    logprob: float
    rank: int
    entries: tuple[tuple[int, float], ...]  # id, log-probability
    asked: tuple[tuple[int, float, int], ...] = ()  # id, log-probability, rank of ids that the request names


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
        num_rows, most = len(numbers), max(1, *numbers)
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


class SamplingColumns(NamedTuple):
    """What sampling reads and writes of some rows, each `[num_rows]`: the arguments of `ops.sample`, and its result."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor
    newest: Tensor  # int32, written: the token from which each row's next step goes on


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The sequences that get a token, a row each."""

    sequences: list[Sequence]
    columns: SamplingColumns
    mode: SampleMode  # one that serves them all


SampledToken = tuple[int, TokenLogprobs | None]  # id, -1 where the logits were not finite; what was asked about it


@dataclass(frozen=True, slots=True)
class SampledRows:
    """A token for each of some sequences, perhaps still being computed."""

    sequences: list[Sequence]
    token_ids: Tensor  # [num_rows] int32; -1 where the logits were not finite
    logprob_rows: Seq[int] = ()  # the rows that asked for log-probabilities
    logprobs: LogprobTensors | None = None  # the log-probabilities of those rows
    asked: Mapping[int, AskedLogprobs] = field(default_factory=dict)  # by row, of those that name ids

    def to_host(self) -> "SampledRows":
        """Start the copy to the host; it may be read once the device has come that far."""
        logprobs = None if self.logprobs is None else self.logprobs.to_host()
        asked = {row: each.to_host() for row, each in self.asked.items()}
        return replace(self, token_ids=to_host(self.token_ids), logprobs=logprobs, asked=asked)

    def read(self) -> list[SampledToken]:
        """Return each row's token."""
        logprobs = () if self.logprobs is None else self.logprobs.read()
        by_row = dict(zip(self.logprob_rows, logprobs, strict=True))
        by_row.update((row, replace(by_row[row], asked=each.read())) for row, each in self.asked.items())
        return [(token_id, by_row.get(row)) for row, token_id in enumerate(self.token_ids.tolist())]


class Sampler:
    """Samples one token for each row; holds the token counts of sequences with penalties."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.ops = model.ops
        self.device = device
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}  # seq_id -> (counts int32, in_prompt bool), [vocab_size]
        self._masks = LogitMasks(device)
        self._biases: dict[int, tuple[bool, Tensor, Tensor]] = {}  # seq_id -> (with bans, ids, values)

    def sample(self, hidden: Tensor, rows: SamplingRows) -> SampledRows:
        """Sample a token from each row's hidden state `[num_rows, dim]`."""
        return self.finish(self.start(hidden, rows.columns, rows.mode), rows)

    def start(self, hidden: Tensor, columns: SamplingColumns, mode: SampleMode) -> Tensor:
        """Run the part of `sample` that can be captured: token ids `[num_rows]`, or in mode LOGITS the logits."""
        if mode is SampleMode.LOGITS:
            return self.model.logits(hidden)
        if mode is SampleMode.FILTERED:
            return self._sample_logits(self.model.logits(hidden), columns)
        token_ids = self.model.sample(hidden, columns.temperature, columns.seeds, columns.positions)
        return self._keep(token_ids, columns)

    def finish(self, started: Tensor, rows: SamplingRows) -> SampledRows:
        """Run the rest of `sample` on what `start` returned."""
        if rows.mode is not SampleMode.LOGITS:
            return SampledRows(rows.sequences, started)
        allowed = allowed_words([(sequence, ()) for sequence in rows.sequences], started.shape[1], self.device)
        token_ids = self._sample_logits(self._changed(started, rows.sequences), rows.columns, allowed)
        self._count(token_ids, rows.sequences)
        wanted = {row: _number(s.params) for row, s in enumerate(rows.sequences) if s.params.reports_logprobs}
        if not wanted:
            return SampledRows(rows.sequences, token_ids)
        where = self._indices(list(wanted))
        logprobs = self.gather_logprobs(started[where], token_ids[where], list(wanted.values()))
        named = {row: as_ids(rows.sequences[row].params.logprob_token_ids) for row in wanted}
        asked = {row: self._logprobs_of(started[row], ids) for row, ids in named.items() if ids}
        return SampledRows(rows.sequences, token_ids, list(wanted), logprobs, asked)

    def gather_logprobs(self, logits: Tensor, token_ids: Tensor, numbers: list[int]) -> LogprobTensors:
        """Gather log-probability and rank of each row's token, and as many of the most likely ids as its number says.

        logits `[num_rows, vocab_size]` are the model's own, token_ids `[num_rows]`.
        """
        chosen = token_ids.clamp(min=0).long().unsqueeze(1)
        logprobs = torch.log_softmax(logits.float(), -1).gather(1, chosen).squeeze(1)
        ranks = (logits > logits.gather(1, chosen)).sum(-1) + 1
        top = self.ops.top_logprobs(logits, min(max(1, *numbers), logits.shape[1]))
        return LogprobTensors(numbers, logprobs, ranks, *top)

    def _logprobs_of(self, logits: Tensor, ids: tuple[int, ...]) -> AskedLogprobs:
        """Gather log-probabilities and ranks of some ids; logits `[vocab_size]` are the model's own."""
        chosen = self._indices(list(ids))
        ranks = (logits > logits[chosen].unsqueeze(1)).sum(-1) + 1
        return AskedLogprobs(ids, torch.log_softmax(logits.float(), -1)[chosen], ranks)

    def free(self, seq_id: int) -> None:
        """Drop what is kept for a sequence, if there is anything."""
        self._counts.pop(seq_id, None)
        self._biases.pop(seq_id, None)
        self._masks.free(seq_id)

    def reset(self) -> None:
        """Drop what is kept for every sequence."""
        self._counts.clear()
        self._biases.clear()
        self._masks.reset()

    def _sample_logits(self, logits: Tensor, columns: SamplingColumns, allowed: Tensor | None = None) -> Tensor:
        mask = () if allowed is None else (allowed,)  # a backend of others may know no masks
        token_ids, _ = self.ops.sample(logits, *columns[:-1], *mask)
        return self._keep(token_ids, columns)

    def _keep(self, token_ids: Tensor, columns: SamplingColumns) -> Tensor:
        """Let the rows go on from these ids; a row of -1 ends, but its next step may have started, with a legal id."""
        torch.clamp(token_ids, min=0, out=columns.newest)
        return token_ids

    def _count(self, token_ids: Tensor, sequences: list[Sequence]) -> None:
        """Count the sampled tokens of sequences with penalties, on the device, and show them to the masks."""
        for row, sequence in enumerate(sequences):
            self._masks.note(token_ids[row : row + 1], sequence)
            if sequence.seq_id in self._counts:
                token_id = token_ids[row : row + 1]
                self._counts[sequence.seq_id][0].index_add_(0, token_id.clamp(min=0).long(), (token_id >= 0).int())

    def _changed(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return the logits after penalties, biases and bans; the same tensor where no row has any."""
        rows = [row for row, s in enumerate(sequences) if changes_logits(s.params, s.num_sampled)]
        if not rows:
            return logits
        where = self._indices(rows)
        changed = logits[where]
        self._change(changed, [sequences[row] for row in rows])
        return logits.index_copy(0, where, changed)

    def _change(self, logits: Tensor, sequences: list[Sequence]) -> None:
        """Apply penalties, biases, bans and masks, in place."""
        counts, in_prompt = zip(*(self._history(sequence, logits.shape[1]) for sequence in sequences), strict=True)
        bias_ids, bias_values = map(list, zip(*map(self._bias_tensors, sequences), strict=True))
        params = [sequence.params for sequence in sequences]
        self.ops.apply_penalties(
            logits,
            torch.stack(counts),
            torch.stack(in_prompt),
            self._floats([p.repetition_penalty for p in params]),
            self._floats([p.presence_penalty for p in params]),
            self._floats([p.frequency_penalty for p in params]),
            pad_sequence(bias_ids, batch_first=True, padding_value=-1),
            pad_sequence(bias_values, batch_first=True),
        )
        for row, sequence in enumerate(sequences):
            self._masks.apply(logits[row], sequence)

    def _history(self, sequence: Sequence, vocab_size: int) -> tuple[Tensor, Tensor]:
        """Return how often each id was generated, int32, and which ids the prompt holds, bool: both `[vocab_size]`."""
        if not sequence.params.has_penalties:
            nothing = torch.zeros(1, dtype=torch.int32, device=self.device).expand(vocab_size)
            return nothing, nothing.bool()
        if sequence.seq_id not in self._counts:
            counts = torch.zeros(vocab_size, dtype=torch.int32, device=self.device)
            in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=self.device)
            in_prompt.index_fill_(0, self._indices(sequence.prompt), True)
            self._counts[sequence.seq_id] = counts, in_prompt
        return self._counts[sequence.seq_id]

    def _bias_tensors(self, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """Return ids and values of `_biases`, built once for all steps that have the same."""
        has_bans = sequence.num_sampled < sequence.params.min_tokens
        kept = self._biases.get(sequence.seq_id)
        if kept is None or kept[0] != has_bans:
            biases = _biases(sequence)
            ids = to_device(list(biases), torch.int32, self.device)
            kept = self._biases[sequence.seq_id] = has_bans, ids, self._floats(list(biases.values()))
        return kept[1:]

    def _floats(self, values: list) -> Tensor:
        return to_device(values, torch.float32, self.device)

    def _indices(self, values: list[int]) -> Tensor:
        return to_device(values, torch.int64, self.device)


def _number(params: SamplingParams) -> int:
    """Return how many of the most likely ids are reported; none where the request names its ids."""
    return 0 if params.logprob_token_ids is not None else params.logprobs or 0


def _biases(sequence: Sequence) -> dict[int, float]:
    """Return what is added to the logits of the sequence's next token, by id: biases, and bans on ending too early."""
    biases = dict(sequence.params.logit_bias or {})
    if sequence.num_sampled < sequence.params.min_tokens:
        biases.update(dict.fromkeys(sequence.stop_ids, float("-inf")))
    return biases
