"""Batch: the tensors that describe one forward step. The tokens of many sequences lie end to end."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One forward step. Padding is legal data: slot -1 stores nothing, context 0 attends to nothing."""

    token_ids: Tensor  # [num_tokens] int32
    positions: Tensor  # [num_tokens] int32
    slot_mapping: Tensor  # [num_tokens] int32: block * block_size + offset; -1: do not store
    cu_seqlens_q: Tensor  # [num_seqs + 1] int32
    context_lens: Tensor  # [num_seqs] int32: cached tokens including this step's
    block_table: Tensor  # [num_seqs, max_blocks] int32, -1 unused
    max_seqlen_q: int  # 1 is decode, and prefill never claims it; nothing else differs


def dense_batch(token_ids: Tensor) -> Batch:
    """A batch without a cache: token_ids `[batch, seq]`, every position of every row (the training view)."""
    rows, length = token_ids.shape
    ints: Any = {"dtype": torch.int32, "device": token_ids.device}
    return Batch(
        token_ids=token_ids.flatten(),
        positions=torch.arange(length, **ints).repeat(rows),
        slot_mapping=torch.full((rows * length,), -1, **ints),
        cu_seqlens_q=torch.arange(0, rows * length + 1, length, **ints),
        context_lens=torch.full((rows,), length, **ints),
        block_table=torch.empty((rows, 0), **ints),
        max_seqlen_q=length,
    )
