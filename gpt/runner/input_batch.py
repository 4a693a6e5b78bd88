"""Rows: the decoding sequences as columns of numbers, one row each, kept on the host and copied to buffers that stay.

Row r of every column belongs to the same sequence; rows 0 to n - 1 are in use, in no particular order, and the rest is
padding: no context, no slot, greedy. A step's cost does not depend on how long the contexts are, and the host never
needs a step's token ids to prepare the next: those stay on the device, where each row finds its own.
"""

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.gpt.models.batch import Batch
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.sequence import Sequence

COLUMNS = {
    "seed": "int64",  # first, where 8 bytes are aligned
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "min_p": "float32",
    "draw_position": "int32",  # of the token to be drawn next, counted from the prompt's first
    "position": "int32",  # where the newest token goes
    "context_len": "int32",  # cached tokens once it is there; these three advance together
    "slot": "int32",
    "source": "int32",  # the row where the device has the newest token's id; -1: `token_id` has it
    "token_id": "int32",
}
PADDING = dict.fromkeys(COLUMNS, 0) | {"top_p": 1, "slot": -1, "source": -1}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "draw_position")

STAGES = 4  # two uploads a step, two steps under way

DRAW, SAMPLE, LOGITS = range(3)  # how a step ends: head and draw in one; logits and a draw; logits for the sampler


class Mirror:
    """An int32 array on the host, and its copy on the device, which never moves."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.host = np.zeros(shape, np.int32)
        self._shared = torch.from_numpy(self.host)  # the same memory
        self.device = self._shared.to(device, copy=True)
        on_cuda = device.type == "cuda"
        pinned = [torch.empty(shape, dtype=torch.int32, pin_memory=True) for _ in range(STAGES if on_cuda else 0)]
        self._staging = cycle(pinned or [self._shared])

    def upload(self, num_rows: int) -> None:
        """Copy the first rows. The host may go on at once: a copy under way reads memory of its own."""
        stage = next(self._staging)
        if stage is not self._shared:
            stage[:num_rows].copy_(self._shared[:num_rows])
        self.device[:num_rows].copy_(stage[:num_rows], non_blocking=True)


class Rows:
    """Columns for up to `max_num_seqs` sequences of up to `max_blocks` blocks."""

    def __init__(self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        num_rows = -(-max_num_seqs // 4) * 4  # so that every column begins at a multiple of 16 bytes
        self.block_size = block_size
        self.sequences: list[Sequence] = []
        self._row_of: dict[int, int] = {}  # seq_id -> row
        self._numbers = Mirror((len(COLUMNS) + 1, num_rows), device)  # a seed is two words
        self._table = Mirror((num_rows, max_blocks), device)
        self._host, self._device = _views(self._numbers.host, np), _views(self._numbers.device, torch)
        for name, value in PADDING.items():
            self._host[name][:] = value
        first = list(COLUMNS).index("draw_position") + 1
        self._advancing = self._numbers.host[first : first + 3]
        self._endings = np.zeros(num_rows, np.int8)
        self._first_block = np.arange(num_rows) * max_blocks  # of a row, in the flat table
        self._identity = np.arange(num_rows, dtype=np.int32)
        self._left = np.zeros(num_rows, np.int32)  # tokens a row may draw before it is full, or has to slide
        self._cu_seqlens = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self.token_ids = torch.zeros(num_rows, dtype=torch.int32, device=device)  # the newest, as the device drew them
        self._batches: dict[int, Batch] = {}  # views made once, by size
        self._sampling: dict[int, tuple[Tensor, ...]] = {}
        self._moved = False  # some `source` is not the row itself
        self._table_changed = True
        self._numbers.upload(len(COLUMNS) + 1)

    def join(self, sequence: Sequence, drawn: bool) -> None:
        """Give the sequence a row. drawn: this step draws its newest token; else the host knows it."""
        row = len(self.sequences)
        self.sequences.append(sequence)
        self._row_of[sequence.seq_id] = row
        params, position = sequence.params, sequence.num_visible - 1
        values = (
            sequence.seed, params.temperature, max(params.top_k, 0), params.top_p, params.min_p, sequence.num_tokens,
            position, position + 1, 0, row if drawn else -1, sequence.last_token,
        )  # fmt: skip
        for column, value in zip(self._host.values(), values, strict=True):
            column[row] = value
        self._moved |= not drawn
        self._endings[row] = ending_of(params)
        self._left[row] = min(sequence.limit - len(sequence.output), sequence.window - position)
        self._table.host[row] = -1
        self.update_blocks(sequence)

    def join_all(self, sequences: Iterable[Sequence]) -> None:
        """Rows for those that have none: they come back from host memory."""
        for sequence in sequences:
            if sequence.seq_id not in self._row_of:
                self.join(sequence, drawn=False)

    def leave(self, seq_id: int) -> None:
        """Free the sequence's row, if it has one; the last row moves there."""
        row = self._row_of.pop(seq_id, None)
        if row is None:
            return
        last, end = self.sequences.pop(), len(self.sequences)
        if row != end:
            self.sequences[row] = last
            self._row_of[last.seq_id] = row
            for column in (*self._host.values(), self._endings, self._left, self._table.host):
                column[row] = column[end]
            self._moved = self._table_changed = True
        for name, value in PADDING.items():
            self._host[name][end] = value

    def update_blocks(self, sequence: Sequence) -> None:
        """Take over the sequence's block table."""
        row = self._row_of.get(sequence.seq_id)
        if row is not None:
            self._table.host[row, : len(sequence.block_table)] = sequence.block_table
            self._table_changed = True

    def upload(self) -> None:
        """Bring the device's copies up to date."""
        n, size, host = len(self.sequences), self.block_size, self._host
        positions = host["position"][:n]
        blocks = self._table.host.reshape(-1).take(self._first_block[:n] + positions // size)
        host["slot"][:n] = blocks * size + positions % size
        self._numbers.upload(len(COLUMNS) + 1)
        if self._table_changed:
            self._table.upload(n)
            self._table_changed = False
        if self._moved:
            source = self._device["source"][:n].long()
            drawn = self.token_ids[source.clamp(min=0)]
            self.token_ids[:n] = torch.where(source < 0, self._device["token_id"][:n], drawn)
            host["source"][:n] = self._identity[:n]
            self._moved = False

    def batch(self, size: int) -> Batch:
        """The newest token of the first `size` rows, as views of the buffers."""
        if size not in self._batches:
            self._batches[size] = Batch(
                token_ids=self.token_ids[:size],
                positions=self._device["position"][:size],
                slot_mapping=self._device["slot"][:size],
                cu_seqlens_q=self._cu_seqlens[: size + 1],
                context_lens=self._device["context_len"][:size],
                block_table=self._table.device[:size],
                max_seqlen_q=1,
            )
        return self._batches[size]

    def sampling(self, first: int, last: int) -> tuple[Tensor, ...]:
        """`sample`'s arguments after the logits, of these rows: temperature, top_k, top_p, min_p, seeds, positions."""
        if last not in self._sampling:
            self._sampling[last] = tuple(self._device[name][:last] for name in SAMPLING)
        columns = self._sampling[last]
        return columns if first == 0 else tuple(column[first:] for column in columns)

    def ending(self, first: int, last: int) -> int:
        """DRAW, SAMPLE or LOGITS: what serves all of these rows."""
        return int(self._endings[first:last].max())

    def num_drawn(self, first: int, last: int) -> list[int]:
        """How many tokens the sequence of each of these rows has drawn, those not yet read included."""
        ends = self._host["draw_position"][first:last].tolist()
        return [end - len(s.prompt) for end, s in zip(ends, self.sequences[first:last], strict=True)]

    def advance(self) -> list[Sequence]:
        """Every row draws its next token; the sequences for which it is the last before they are full, or slide."""
        n = len(self.sequences)
        self._advancing[:, :n] += 1
        left = self._left[:n]
        left -= 1
        return [] if left.all() else [self.sequences[row] for row in (left == 0).nonzero()[0].tolist()]


def ending_of(params: SamplingParams) -> int:
    """How a step has to end for a sequence with these parameters."""
    if params.changes_logits or params.min_tokens or params.logprobs is not None:
        return LOGITS
    filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return SAMPLE if filtered and params.temperature > 0 else DRAW


def _views(words: Any, library: Any) -> dict[str, Any]:
    """Each column as an array of its own type over the same memory; of NumPy or of torch."""
    views, first = {}, 0
    for name, kind in COLUMNS.items():
        last = first + (2 if kind == "int64" else 1)
        views[name] = words[first:last].reshape(-1).view(getattr(library, kind))
        first = last
    return views
