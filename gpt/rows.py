"""Rows: the decoding sequences as columns of numbers, one row each, kept up to date instead of built anew each step.

Row r of every column belongs to the same sequence; rows 0 to n - 1 are in use, in no particular order. A step's cost
does not depend on how long the contexts are.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from octavo.gpt.batch import Batch
from octavo.gpt.sequence import Sequence

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")

COLUMN_TYPES = {
    "token_id": np.int32,  # the newest token, not yet in the cache
    "position": np.int32,  # where it goes
    "draw_position": np.int32,  # of the token to be drawn next, counted from the prompt's first
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seed": np.int64,
}


class Rows:
    """Columns for up to `max_num_seqs` sequences of up to `max_blocks` blocks."""

    def __init__(self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        self.sequences: list[Sequence] = []
        self._row_of: dict[int, int] = {}  # seq_id -> row
        self._columns = {name: np.zeros(max_num_seqs, kind) for name, kind in COLUMN_TYPES.items()}
        self._block_table = np.full((max_num_seqs, max_blocks), -1, np.int32)
        self._ends = np.arange(max_num_seqs + 1, dtype=np.int32)

    def join(self, sequence: Sequence) -> None:
        """Give the sequence a row; its newest token is the next to be computed, or was just computed as prefill."""
        row = len(self.sequences)
        self.sequences.append(sequence)
        self._row_of[sequence.seq_id] = row
        params = sequence.params
        values = (
            sequence.last_token, sequence.num_visible - 1, sequence.num_tokens,
            params.temperature, max(params.top_k, 0), params.top_p, params.min_p, sequence.seed,
        )  # fmt: skip
        for column, value in zip(self._columns.values(), values, strict=True):
            column[row] = value
        self._block_table[row] = -1
        self.update_blocks(sequence)

    def join_all(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            if sequence.seq_id not in self._row_of:
                self.join(sequence)

    def leave(self, seq_id: int) -> None:
        """Free the sequence's row, if it has one; the last row moves there."""
        row = self._row_of.pop(seq_id, None)
        if row is None:
            return
        last = self.sequences.pop()
        if last.seq_id != seq_id:
            end = len(self.sequences)
            self.sequences[row] = last
            self._row_of[last.seq_id] = row
            for column in (*self._columns.values(), self._block_table):
                column[row] = column[end]

    def update_blocks(self, sequence: Sequence) -> None:
        """Take over the sequence's block table."""
        row = self._row_of.get(sequence.seq_id)
        if row is not None:
            self._block_table[row, : len(sequence.block_table)] = sequence.block_table

    def batch(self) -> Batch:
        """The newest token of every row."""
        n, size = len(self.sequences), self.block_size
        positions = self._columns["position"][:n]
        blocks = np.take_along_axis(self._block_table[:n], positions[:, None] // size, axis=1)[:, 0]
        return Batch(
            token_ids=self._tensor(self._columns["token_id"][:n]),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(blocks * size + positions % size),
            cu_seqlens_q=self._tensor(self._ends[: n + 1]),
            context_lens=self._tensor(positions + 1),
            block_table=self._tensor(self._block_table[:n]),
            max_seqlen_q=1,
        )

    def sampling(self) -> tuple[Tensor, ...]:
        """`sample`'s arguments after the logits: temperature, top_k, top_p, min_p, seeds, positions."""
        n = len(self.sequences)
        return tuple(self._tensor(self._columns[name][:n]) for name in (*SAMPLING, "draw_position"))

    def advance(self, token_ids: list[int]) -> None:
        """Every row got its next token."""
        n = len(self.sequences)
        self._columns["token_id"][:n] = token_ids
        self._columns["position"][:n] += 1
        self._columns["draw_position"][:n] += 1

    def _tensor(self, column: np.ndarray) -> Tensor:
        return torch.from_numpy(column).to(self.device)
