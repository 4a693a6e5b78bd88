"""LoRA: what adapters add to a network's products, in one step for each row its own adapter's, or nothing.

    y = activation(x @ weight.T + bias + scale * (x @ down.T) @ up.T)      https://arxiv.org/abs/2106.09685

A step with adapters runs the same network with another `linear`, so no family knows of them. Every product goes through
the backend's own `linear`: where its row i depends on row i alone, a row's bits are the same in any company, and a row
without an adapter has the bits that it has in a step without any.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.kernels.ops import Ops
from octavo.kernels.weights import Weight

UNIT = 64  # values activated by one row of a product with the identity

Rows = Tensor | slice  # int64 indices of a step's rows


class Update(NamedTuple):
    """Adds `(x @ down.T) @ up.T` to the columns of a product from `first` on."""

    down: Tensor  # [rank, in_features]
    up: Tensor  # [num_columns, rank], the adapter's scale in it
    first: int


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter as the network's products take it: updates by the name of the `Linear` module that they change."""

    updates: Mapping[str, tuple[Update, ...]]


class _Changed(NamedTuple):
    """Rows of one product, and what is added to them."""

    rows: Rows
    updates: tuple[Update, ...]


def adapted(model: Model, adapters: Sequence[tuple[Adapter, Rows]]) -> Model:
    """The same network, of the same weights, for one step in which these rows are computed with their adapters.

    Rows `[n]` are indices into the tokens of the step's batch, no row in two of them.
    """
    changes: dict[int, list[_Changed]] = {}
    for adapter, rows in adapters:
        for name, updates in adapter.updates.items():
            changes.setdefault(id(model.get_submodule(name).weight), []).append(_Changed(rows, updates))
    network = copy(model)
    network.ops = replace(model.ops, linear=partial(_linear, model.ops, changes))
    return network


def _linear(
    ops: Ops,
    changes: Mapping[int, Sequence[_Changed]],
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The backend's `linear`, and in the changed rows what their adapters make of it; changes go by the weight's id."""
    y = ops.linear(x, weight, bias, activation)
    for rows, updates in changes.get(id(weight), ()):
        own = x[rows]
        total = y[rows] if activation is None else ops.linear(own, weight, bias)
        for update in updates:
            total[:, update.first : update.first + len(update.up)] += ops.linear(
                ops.linear(own, update.down), update.up
            )
        y[rows] = total if activation is None else _activated(ops, total, activation)
    return y


def _activated(ops: Ops, x: Tensor, activation: str) -> Tensor:
    """`activation(x)`, bit for bit as the backend's product has it: through one with the identity, which is exact.

    PyTorch's own functions round otherwise at the end of a tensor than in its middle.
    """
    width = gcd(x.shape[1], UNIT)
    unit = torch.eye(width, dtype=x.dtype, device=x.device)
    return ops.linear(x.reshape(-1, width), unit, None, activation).view(x.shape)
