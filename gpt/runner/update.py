"""New weights for a model that decodes: tensors by their Hugging Face names, in the place of those that it has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.gpt.loading.checkpoint import Checkpoint, Slice
from octavo.gpt.loading.hf import canonical
from octavo.gpt.loading.loader import fill
from octavo.gpt.loading.tensor_file import FLOATS, TensorFile, TensorInfo
from octavo.gpt.models.base import Model, Packable
from octavo.gpt.models.registry import empty_network, family_of
from octavo.gpt.quoting import quoted

NAME = Path("update_weights")  # what messages call the place that the tensors are from
KINDS = {dtype: name for name, dtype in FLOATS.items()}

Tensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
Plan = dict[str, list[Slice]]


@dataclass(frozen=True)
class Given(TensorFile):
    """Tensors of the caller's as a file of them: rows are converted when they are read."""

    values: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = self.values[name]
        return tensor[start:stop] if tensor.dim() > 1 else tensor


def plan_update(model: Model, tensors: Tensors) -> Plan:
    """Which of the tensors fills which rows of each parameter; a parameter of which nothing is given is left out.

    ValueError names a tensor that has no place, the wrong shape or type, or that is missing beside others of the same
    parameter (q, k and v; gate and up). Nothing is changed here.
    """
    values: dict[str, Tensor] = {}
    for pair in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise ValueError(f"{NAME} takes pairs of a name and a tensor, not {quoted(pair)}")
        values[str(pair[0])] = pair[1].detach()
    infos = {
        name: TensorInfo(tuple(value.shape), KINDS.get(value.dtype, str(value.dtype)), 0, 0)
        for name, value in values.items()
    }
    family = family_of(model.config)
    named = canonical(NAME, model.config, family, dict.fromkeys(values, Given(NAME, infos, values)))
    checkpoint = Checkpoint(
        NAME, model.config, named, family.hf_names, family.hf_transposed,
        norm_offset=family.hf_norm_offset, grouped=family.hf_grouped,
    )  # fmt: skip
    return checkpoint.match(empty_network(model.config), partly=True)


def is_whole(model: Model, plan: Plan) -> bool:
    """Whether the plan fills every parameter."""
    return plan.keys() == {name for name, _ in empty_network(model.config).named_parameters()}


def apply(model: Model, plan: Plan, dtype: torch.dtype, device: torch.device) -> None:
    """Fill the parameters, of that dtype on that device, and pack again what the backend packs, in the same format."""
    shapes = {name: parameter.shape for name, parameter in empty_network(model.config).named_parameters()}
    for name, slices in plan.items():
        path, _, leaf = name.rpartition(".")
        module: Any = model.get_submodule(path)
        held = module._parameters.get(leaf)
        if held is None or held.shape != shapes[name]:
            delattr(module, leaf)  # the old goes before the new takes memory
            setattr(module, leaf, _parameter(shapes[name], dtype, device))
        for part in slices:
            fill(getattr(module, leaf).detach(), part)
        if leaf == "weight" and isinstance(module, Packable):
            model.pack_module(module)


def release(model: Model, dtype: torch.dtype, device: torch.device) -> None:
    """Free the memory of every parameter, packed ones included; `apply` brings them back."""
    for module in model.modules():
        leaves = [name for name, _ in module.named_parameters(recurse=False)]
        for leaf in {*leaves, *(["weight"] if isinstance(module, Packable) else [])}:
            delattr(module, leaf)
            setattr(module, leaf, _parameter((0,), dtype, device))


def _parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
