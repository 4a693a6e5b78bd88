"""InputBatch: the decoding sequences as columns of numbers, one row each, on the host and in buffers on the device.

Row r of every column belongs to the same sequence; rows 0 to n - 1 are in use, in no particular order, and the rest is
padding: no context, no slot, greedy. The buffers never move, so a captured step reads each step's numbers. The host
never needs a step's token ids to prepare the next: the ids stay on the device, where each row finds its own.

A step that checks guesses has a row for each of them as well, behind that of the token before it: the same columns, and
to the kernels rows like any others. Its ids are the host's, which knows them all before such a step.
"""

from collections.abc import Iterable
from itertools import accumulate, cycle
from typing import Any

import numpy as np
import torch

from octavo.gpt.models.batch import Batch
from octavo.gpt.runner.sampler import SampleMode, SamplingColumns, SamplingRows, sample_mode
from octavo.gpt.runner.transfer import to_device
from octavo.gpt.scheduler.sequence import Sequence

COLUMNS = {
    "seed": "int64",  # first, where 8 bytes are aligned
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "min_p": "float32",
    "sample_position": "int32",  # of the token to be sampled next, counted from the prompt's first
    "position": "int32",  # of the newest token in its context
    "context_len": "int32",  # cached tokens, the newest included
    "slot": "int32",  # where the newest token's key and value go
    "source": "int32",  # the row where the device has the newest token's id; -1: `token_id` has it
    "token_id": "int32",
}
PADDING = dict.fromkeys(COLUMNS, 0) | {"top_p": 1, "slot": -1, "source": -1}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "sample_position")

STAGES = 4  # two uploads a step, two steps in flight


class CpuGpuBuffer:
    """An int32 array on the host and its copy on the device, which never moves."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.host = np.zeros(shape, np.int32)
        self._shared = torch.from_numpy(self.host)  # the same memory
        self.device = self._shared.to(device, copy=True)
        on_cuda = device.type == "cuda"
        pinned = [
            torch.empty(shape, dtype=torch.int32, device="cpu", pin_memory=True)
            for _ in range(STAGES if on_cuda else 0)
        ]
        self._staging = cycle(pinned or [self._shared])

    def upload(self, num_rows: int, other: np.ndarray | None = None) -> None:
        """Copy the first rows, or those of another array.

        The host may write on at once: a copy in flight reads staging memory.
        """
        stage, source = next(self._staging), self._shared if other is None else torch.from_numpy(other)
        if stage is self._shared:
            stage = source
        else:
            stage[:num_rows].copy_(source[:num_rows])
        self.device[:num_rows].copy_(stage[:num_rows], non_blocking=True)


class InputBatch:
    """Columns for up to `max_rows` rows, of sequences of up to `max_blocks` blocks."""

    def __init__(self, max_rows: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        num_rows = -(-max_rows // 4) * 4  # so that every column begins at a multiple of 16 bytes
        self.block_size = block_size
        self._numbers = CpuGpuBuffer((len(COLUMNS) + 1, num_rows), device)  # a seed is two words
        self._table = CpuGpuBuffer((num_rows, max_blocks), device)
        self._host, self._device = _views(self._numbers.host, np), _views(self._numbers.device, torch)
        self._modes = np.zeros(num_rows, np.int8)
        self._context_starts = np.zeros(num_rows, np.int32)
        self._first_block = np.arange(num_rows) * max_blocks  # of a row, in the flat table
        self._identity = np.arange(num_rows, dtype=np.int32)
        self._cu_seqlens = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self.token_ids = torch.zeros(num_rows, dtype=torch.int32, device=device)  # the newest, as sampled
        self._batches: dict[int, Batch] = {}  # views made once, by size
        self._columns: dict[int, SamplingColumns] = {}
        self.reset()
        self._numbers.upload(len(COLUMNS) + 1)

    def reset(self) -> None:
        """Make every row padding. The buffers and their views stay."""
        self.sequences: list[Sequence] = []
        self._row_of: dict[int, int] = {}  # seq_id -> row
        for name, value in PADDING.items():
            self._host[name][:] = value
        self._moved = False  # some `source` is not the row itself
        self._guessed = False  # the last step checked guesses: the device has the ids of other rows
        self._table_changed = True

    def add(self, sequence: Sequence, sampling: bool) -> None:
        """Give the sequence a row. sampling: this step samples its newest token; else the host knows that token."""
        row = len(self.sequences)
        self.sequences.append(sequence)
        self._row_of[sequence.seq_id] = row
        params = sequence.params
        values = {
            "seed": sequence.seed,
            "temperature": params.temperature,
            "top_k": max(params.top_k, 0),
            "top_p": params.top_p,
            "min_p": params.min_p,
            "sample_position": len(sequence.prompt) + sequence.num_sampled,
            "source": row if sampling else -1,
            "token_id": sequence.last_token,
        }
        for name, value in values.items():
            self._host[name][row] = value
        self._moved |= not sampling
        self._modes[row] = sample_mode(params)
        self._context_starts[row] = sequence.context_start
        self._table.host[row] = -1
        self.update_blocks(sequence)

    def add_missing(self, sequences: Iterable[Sequence]) -> None:
        """Give a row to each sequence that has none: it came back from host memory."""
        for sequence in sequences:
            if sequence.seq_id not in self._row_of:
                self.add(sequence, sampling=False)

    def remove(self, seq_id: int) -> None:
        """Free the sequence's row, if it has one; the last row moves there."""
        row = self._row_of.pop(seq_id, None)
        if row is None:
            return
        last, end = self.sequences.pop(), len(self.sequences)
        if row != end:
            self.sequences[row] = last
            self._row_of[last.seq_id] = row
            for column in (*self._host.values(), self._modes, self._context_starts, self._table.host):
                column[row] = column[end]
            self._moved = self._table_changed = True
        for name, value in PADDING.items():
            self._host[name][end] = value

    def update_blocks(self, sequence: Sequence) -> None:
        """Copy the sequence's block table into its row."""
        row = self._row_of.get(sequence.seq_id)
        if row is not None:
            self._table.host[row, : len(sequence.block_table)] = sequence.block_table
            self._table_changed = True

    def prepare_decode(self) -> SamplingRows:
        """Let every row compute its newest token in the step that comes, guesses after it too, and upload."""
        n = len(self.sequences)
        self._place()
        guesses = [sequence.guess for sequence in self.sequences]
        if any(guesses):
            return self._prepare_guesses(guesses)
        if self._guessed:
            self._guessed, self._moved = False, True
            self._host["source"][:n] = -1
            self._host["token_id"][:n] = [sequence.last_token for sequence in self.sequences]
        self.upload()
        return self.sampling_rows(0)

    def _place(self) -> None:
        """Where each row's newest token goes."""
        n, size, host = len(self.sequences), self.block_size, self._host
        positions, context_lens = host["position"][:n], host["context_len"][:n]
        positions[:] = [sequence.num_computed for sequence in self.sequences]
        np.add(positions, 1, out=context_lens)
        np.add(context_lens, self._context_starts[:n], out=host["sample_position"][:n])
        blocks = self._table.host.reshape(-1).take(self._first_block[:n] + positions // size)
        host["slot"][:n] = blocks * size + positions % size

    def _prepare_guesses(self, guesses: list[list[int]]) -> SamplingRows:
        """Upload a row for each sequence's newest token and one for each of its guesses, one behind the other."""
        counts = [1 + len(guess) for guess in guesses]
        first = list(accumulate(counts, initial=0))
        rows = np.repeat(np.arange(len(counts)), counts)
        num_rows, ahead = len(rows), np.arange(len(rows)) - np.repeat(first[:-1], counts)
        numbers = np.zeros_like(self._numbers.host)
        wide = _views(numbers, np)
        for name, value in PADDING.items():
            wide[name][:num_rows], wide[name][num_rows:] = self._host[name][rows], value
        for name in ("position", "context_len", "sample_position"):
            wide[name][:num_rows] += ahead
        places, size = wide["position"][:num_rows], self.block_size
        wide["slot"][:num_rows] = self._table.host[rows, places // size] * size + places % size
        ids = [token_id for s in self.sequences for token_id in (s.last_token, *s.guess)]
        self._numbers.upload(len(COLUMNS) + 1, numbers)
        self._table.upload(num_rows, self._table.host[rows])
        self.token_ids[:num_rows] = to_device(ids, torch.int32, self.token_ids.device)
        self._guessed = self._table_changed = True
        mode = SampleMode(int(self._modes[: len(guesses)].max()))
        return SamplingRows([self.sequences[row] for row in rows], self.columns(num_rows), mode, guesses)

    def upload(self) -> None:
        """Bring the device's copies up to date."""
        n = len(self.sequences)
        self._numbers.upload(len(COLUMNS) + 1)
        if self._table_changed:
            self._table.upload(n)
            self._table_changed = False
        if self._moved:
            source = self._device["source"][:n].long()
            sampled = self.token_ids[source.clamp(min=0)]
            self.token_ids[:n] = torch.where(source < 0, self._device["token_id"][:n], sampled)
            self._host["source"][:n] = self._identity[:n]
            self._moved = False

    def batch(self, size: int) -> Batch:
        """Return the newest token of the first `size` rows, as views of the buffers."""
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

    def columns(self, size: int) -> SamplingColumns:
        """Return what sampling reads and writes of the first `size` rows, as views of the buffers."""
        if size not in self._columns:
            arguments = (self._device[name][:size] for name in SAMPLING)
            self._columns[size] = SamplingColumns._make((*arguments, self.token_ids[:size]))
        return self._columns[size]

    def sampling_rows(self, first: int) -> SamplingRows:
        """Return the rows from `first` on, to be sampled."""
        last = len(self.sequences)
        columns = self.columns(last)
        if first:
            columns = SamplingColumns._make(column[first:] for column in columns)
        mode = SampleMode(int(self._modes[first:last].max()))
        return SamplingRows(self.sequences[first:], columns, mode)


def _views(words: Any, library: Any) -> dict[str, Any]:
    """Return each column as an array of its own type over the same memory; of NumPy or of torch."""
    views, first = {}, 0
    for name, kind in COLUMNS.items():
        last = first + (2 if kind == "int64" else 1)
        views[name] = words[first:last].reshape(-1).view(getattr(library, kind))
        first = last
    return views
