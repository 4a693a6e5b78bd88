"""Sampler: from hidden states to token ids, and all that a request may ask for on the way.

The three ways to get there are `SampleMode`'s. The first two run on the device alone and can be captured; in the third
the host takes part between logits and sample, with penalties, biases, bans, log-probabilities and forms of the output.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from octavo.gpt.models.base import Model
from octavo.gpt.runner.logit_masks import LogitMasks, has_masks
from octavo.gpt.runner.logprobs import (
    AskedLogprobs,
    KeptTensors,
    LogprobTensors,
    TokenLogprobs,
    filtered,
    gather_logprobs,
    token_logprobs,
)
from octavo.gpt.runner.transfer import to_device, to_host
from octavo.gpt.sampling_params import PROCESSED, SamplingParams, as_ids
from octavo.gpt.scheduler.sequence import Sequence
from octavo.gpt.structured.masks import allowed_words
from octavo.kernels.ops import allowed_bits


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
    if changes_logits(params, 0) or params.reports_drawing or params.structured is not None:
        return SampleMode.LOGITS
    filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return SampleMode.FILTERED if filtered and params.temperature > 0 else SampleMode.FUSED


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
    """The sequences that get a token, a row each; those with guesses have a row for each guess as well."""

    sequences: list[Sequence]
    columns: SamplingColumns
    mode: SampleMode  # one that serves them all
    guesses: Seq[Seq[int]] = ()  # of each sequence, if any has some

    @property
    def ahead(self) -> list[Seq[int]]:
        """The guesses that each row's token comes after."""
        if not self.guesses:
            return [()] * len(self.sequences)
        return [guess[:number] for guess in self.guesses for number in range(len(guess) + 1)]

    @property
    def groups(self) -> list[tuple[Sequence, Seq[int]]]:
        """Each sequence once, with its guesses."""
        firsts = [sequence for sequence, ahead in zip(self.sequences, self.ahead, strict=True) if not ahead]
        return list(zip(firsts, self.guesses or [()] * len(firsts), strict=True))

    def confirmed(self, token_ids: list[int]) -> list[int]:
        """Return the rows that count, out of the tokens that were sampled in all: of each sequence those before which
        every guess is the token that was sampled."""
        rows: list[int] = []
        first = 0
        for guess in self.guesses:
            sampled = token_ids[first : first + len(guess)]
            right = takewhile(lambda pair: pair[0] == pair[1], zip(guess, sampled, strict=True))
            rows += range(first, first + 1 + len(list(right)))
            first += len(guess) + 1
        return rows


SampledToken = tuple[int, TokenLogprobs | None]  # id, -1 where the logits were not finite; what was asked about it


@dataclass(frozen=True, slots=True)
class SampledRows:
    """A token for each of some sequences, perhaps still being computed."""

    sequences: list[Sequence]
    token_ids: Tensor  # [num_rows] int32; -1 where the logits were not finite
    logprob_rows: Seq[int] = ()  # the rows that asked for log-probabilities
    logprobs: LogprobTensors | None = None  # the log-probabilities of those rows
    asked: Mapping[int, AskedLogprobs] = field(default_factory=dict)  # by row, of those that name ids
    kept: Mapping[int, KeptTensors] = field(default_factory=dict)  # by row, of those that ask what the filters left

    def to_host(self) -> "SampledRows":
        """Start the copy to the host; it may be read once the device has come that far."""
        logprobs = None if self.logprobs is None else self.logprobs.to_host()
        asked = {row: each.to_host() for row, each in self.asked.items()}
        kept = {row: each.to_host() for row, each in self.kept.items()}
        return replace(self, token_ids=to_host(self.token_ids), logprobs=logprobs, asked=asked, kept=kept)

    def read(self) -> list[SampledToken]:
        """Return each row's token."""
        logprobs = () if self.logprobs is None else self.logprobs.read()
        by_row = dict(zip(self.logprob_rows, logprobs, strict=True))
        by_row.update((row, replace(by_row[row], asked=each.read())) for row, each in self.asked.items())
        by_row.update((row, replace(by_row[row], kept=each.read())) for row, each in self.kept.items())
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
        """Run the rest of `sample` on what `start` returned. Of rows with guesses only those that count remain."""
        is_sampled = rows.mode is not SampleMode.LOGITS
        changed = started if is_sampled else self._changed(started, rows)
        allowed = None if is_sampled else allowed_words(rows.groups, started.shape[1], self.device)
        token_ids = started if is_sampled else self._sample_logits(changed, rows.columns, allowed)
        if rows.guesses:
            kept = rows.confirmed(token_ids.tolist())
            where = self._indices(kept)
            started, changed, token_ids = started[where], changed[where], token_ids[where]
            allowed = None if allowed is None else allowed[where]
            columns = SamplingColumns._make(column[where] for column in rows.columns)
            rows = SamplingRows([rows.sequences[row] for row in kept], columns, rows.mode)
        if is_sampled:
            return SampledRows(rows.sequences, token_ids)
        self._count(token_ids, rows.sequences)
        if allowed is not None:
            changed = changed.masked_fill(~allowed_bits(allowed, changed.shape[1]), -torch.inf)
        return self._report(started, changed, token_ids, rows)

    def _report(self, raw: Tensor, changed: Tensor, token_ids: Tensor, rows: SamplingRows) -> SampledRows:
        """Gather what requests ask about their tokens, out of the model's logits and of those that were sampled."""
        params = [sequence.params for sequence in rows.sequences]
        wanted = [row for row, p in enumerate(params) if p.reports_drawing]
        if not wanted:
            return SampledRows(rows.sequences, token_ids)
        kept: dict[int, KeptTensors] = {}
        logits = {row: raw[row].float() for row in wanted}
        for row in wanted:
            if params[row].logprobs_mode == PROCESSED or params[row].return_kept:
                filters = (column[row : row + 1] for column in rows.columns[:4])
                kept[row] = filtered(changed[row], token_ids[row], *filters)
                if params[row].logprobs_mode == PROCESSED:
                    logits[row] = kept[row].logits
        numbers = [_number(params[row]) for row in wanted]
        chosen = token_ids[self._indices(wanted)]
        logprobs = gather_logprobs(self.ops, torch.stack(list(logits.values())), chosen, numbers)
        named = {row: as_ids(params[row].logprob_token_ids) for row in wanted}
        asked = {row: self._asked(logits[row], ids) for row, ids in named.items() if ids}
        kept = {row: each for row, each in kept.items() if params[row].return_kept}
        return SampledRows(rows.sequences, token_ids, wanted, logprobs, asked, kept)

    def _asked(self, logits: Tensor, ids: tuple[int, ...]) -> AskedLogprobs:
        """Gather log-probabilities and ranks of ids that a request names; logits `[vocab_size]`."""
        logprobs, ranks = token_logprobs(self.ops, logits.unsqueeze(0), self._indices(list(ids)).unsqueeze(0))
        return AskedLogprobs(ids, logprobs[0], ranks[0])

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

    def _changed(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        """Return the logits after penalties, biases and bans; the same tensor where no row has any."""
        each = list(zip(rows.sequences, rows.ahead, strict=True))
        changing = [row for row, (s, ahead) in enumerate(each) if changes_logits(s.params, s.num_sampled + len(ahead))]
        if not changing:
            return logits
        where = self._indices(changing)
        changed = logits[where]
        self._change(changed, [each[row] for row in changing])
        return logits.index_copy(0, where, changed)

    def _change(self, logits: Tensor, rows: list[tuple[Sequence, Seq[int]]]) -> None:
        """Apply penalties, biases, bans and masks, in place, for each sequence after some guesses."""
        counts, in_prompt = zip(*(self._history(*row, logits.shape[1]) for row in rows), strict=True)
        bias_ids, bias_values = map(list, zip(*(self._bias_tensors(s, len(ahead)) for s, ahead in rows), strict=True))
        params = [sequence.params for sequence, _ in rows]
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
        for row, (sequence, ahead) in enumerate(rows):
            self._masks.apply(logits[row], sequence, ahead)

    def _history(self, sequence: Sequence, ahead: Seq[int], vocab_size: int) -> tuple[Tensor, Tensor]:
        """Return how often each id was generated, int32, and which ids the prompt holds, bool: both `[vocab_size]`."""
        if not sequence.params.has_penalties:
            nothing = torch.zeros(1, dtype=torch.int32, device=self.device).expand(vocab_size)
            return nothing, nothing.bool()
        if sequence.seq_id not in self._counts:
            counts = torch.zeros(vocab_size, dtype=torch.int32, device=self.device)
            in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=self.device)
            in_prompt.index_fill_(0, self._indices(sequence.prompt), True)
            self._counts[sequence.seq_id] = counts, in_prompt
        counts, in_prompt = self._counts[sequence.seq_id]
        if ahead:
            guesses = self._indices(list(ahead))
            counts = counts.index_add(0, guesses, torch.ones_like(guesses, dtype=torch.int32))
        return counts, in_prompt

    def _bias_tensors(self, sequence: Sequence, num_ahead: int) -> tuple[Tensor, Tensor]:
        """Return ids and values of `_biases`, built once for all steps that have the same."""
        has_bans = sequence.num_sampled + num_ahead < sequence.params.min_tokens
        kept = self._biases.get(sequence.seq_id)
        if kept is None or kept[0] != has_bans:
            biases = _biases(sequence, has_bans)
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


def _biases(sequence: Sequence, has_bans: bool) -> dict[int, float]:
    """Return what is added to the logits of the sequence's next token, by id: biases, and bans on ending too early."""
    biases = dict(sequence.params.logit_bias or {})
    if has_bans:
        biases.update(dict.fromkeys(sequence.stop_ids, float("-inf")))
    return biases
