"""Checkpoint: a model on disk whose names, shapes and configuration are known and whose weights are not yet read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig

Names = dict[str, tuple[str, ...]]  # our module -> the checkpoint's, whose rows it stacks; {} is the layer


class Piece(NamedTuple):
    """A checkpoint's tensor and the rows of a parameter that it fills."""

    file: TensorFile
    name: str
    first_row: int
    num_rows: int
    transposed: bool


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `tensors` goes by the names of the table `names`: to the file, and the name in that file."""

    listing: Path  # the file that says what tensors there are
    config: ModelConfig
    tensors: Mapping[str, tuple[TensorFile, str]]
    names: Names
    transposed: tuple[str, ...] = ()  # modules whose weight lies [in_features, out_features]

    def match(self, model: Model) -> dict[str, list[Piece]]:
        """The pieces of every parameter of an empty model; ValueError names a tensor that is missing, odd or extra."""
        unused = dict(self.tensors)
        plan: dict[str, list[Piece]] = {}
        for parameter, weight in model.named_parameters():
            module, _, leaf = parameter.rpartition(".")
            key, layer = re.sub(r"\.\d+\.", ".{}.", module), "".join(re.findall(r"\.(\d+)\.", module))
            sources = [f"{source.format(layer)}.{leaf}" for source in self.names.get(key, (key,))]
            heights = stacked_rows(self.config, key, weight.shape[0])
            transposed = key in self.transposed and leaf == "weight"
            first_rows = [sum(heights[:i]) for i in range(len(heights))]
            plan[parameter] = [
                self._piece(source, first, height, weight, transposed)
                for source, first, height in zip(sources, first_rows, heights, strict=True)
            ]
            for source in sources:
                unused.pop(source)
        for file, name in unused.values():
            raise ValueError(f"{file.path}: tensor {name} has no place in a {self.config.family} of this configuration")
        return plan

    def _piece(self, source: str, first: int, height: int, weight: Tensor, transposed: bool) -> Piece:
        if source not in self.tensors:
            raise ValueError(f"{self.listing}: tensor {source} is missing")
        file, name = self.tensors[source]
        info, expected = file.tensors[name], (height, *weight.shape[1:])
        if info.shape != (expected[::-1] if transposed else expected):
            wanted = list(expected[::-1] if transposed else expected)
            raise ValueError(f"{file.path}: tensor {name} is {list(info.shape)}, the configuration asks for {wanted}")
        if not file.reads(info.kind):
            raise ValueError(f"{file.path}: tensor {name} is of type {info.kind}, which cannot be read as floats")
        return Piece(file, name, first, height, transposed)


def stacked_rows(config: ModelConfig, module: str, rows: int) -> tuple[int, ...]:
    """How many rows of a parameter each of the stacked checkpoint tensors holds."""
    if module.endswith("qkv_proj"):
        return (config.num_heads * config.head_dim, *2 * (config.num_kv_heads * config.head_dim,))
    if module.endswith("gate_up_proj"):
        return (config.hidden_dim, config.hidden_dim)
    return (rows,)
