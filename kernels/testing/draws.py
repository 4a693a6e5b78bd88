"""Rows of logits and of sampling parameters, of every kind."""

from typing import Any

import torch
from torch import Tensor

from octavo.kernels.testing.inputs import DEVICE

SEEDS = (0, -1, 1, 2**31, 2**63 - 1, -(2**63))


def parameters(
    num_rows: int,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seeds: Any = 0,
    positions: Any = 0,
    device: torch.device = DEVICE,
) -> tuple[Tensor, ...]:
    """`sample`'s arguments after the logits; each may be a number for all rows or one value a row."""
    values = (temperature, top_k, top_p, min_p, seeds, positions)
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int32)
    columns = (torch.as_tensor(value, dtype=dtype) for value, dtype in zip(values, dtypes, strict=True))
    return tuple(column.expand(num_rows).contiguous().to(device) for column in columns)


def any_parameters(
    num_rows: int, vocab_size: int, generator: torch.Generator, device: torch.device = DEVICE
) -> tuple[Tensor, ...]:
    """Every kind of row: each filter off in about a third, mild or extreme in the others."""

    def pick(*values: float) -> list[float]:
        return [values[i] for i in torch.randint(len(values), (num_rows,), generator=generator)]

    return parameters(
        num_rows,
        pick(0, 1e-30, 1e-6, 1e-3, 0.3, 0.7, 1, 1, 1.7, 100),
        pick(0, 0, 0, 1, 2, 3, 5, 20, 50, max(vocab_size - 1, 1), vocab_size, 2**30),
        pick(1, 1, 1, 0.999999, 0.99, 0.9, 0.7, 0.5, 0.1, 1e-9),
        pick(0, 0, 0, 1e-30, 0.01, 0.05, 0.3, 0.9, 1),
        torch.where(
            torch.rand(num_rows, generator=generator) < 0.2,
            torch.tensor(SEEDS)[torch.randint(len(SEEDS), (num_rows,), generator=generator)],
            torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        ),
        torch.randint(2**31 - 1, (num_rows,), generator=generator),
        device,
    )


def any_logits(num_rows: int, vocab_size: int, generator: torch.Generator, device: torch.device = DEVICE) -> Tensor:
    """A different kind in each row: spread, peaked, tied, flat, forbidding most ids, enormous, and infinite."""
    normal = torch.randn(num_rows, vocab_size, generator=generator)
    forbidden = torch.rand(num_rows, vocab_size, generator=generator) < 0.9
    kinds = [
        4 * normal,
        normal - 100,
        (2 * normal).round(),  # ties everywhere, of both zeros
        normal**3 * 3,
        torch.zeros_like(normal),
        normal.masked_fill(forbidden, -torch.inf),
        normal * 1e30,
        torch.where(normal > 2.5, torch.inf, normal),
        (4 * normal).half().float(),
    ]
    logits = torch.stack(kinds)[torch.arange(num_rows) % len(kinds), torch.arange(num_rows)]
    logits[:, 0] = torch.where(logits.amax(-1) > -torch.inf, logits[:, 0], 0)  # a row has to have an id
    return logits.to(device)


def allowed_words(bits: Tensor) -> Tensor:
    """The mask of `sample` that allows the ids of bool bits `[num_rows, vocab_size]`; what lies beyond them is set."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 32), value=True).long().unflatten(1, (-1, 32))
    return (padded << torch.arange(32)).sum(-1).int()
