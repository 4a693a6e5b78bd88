"""Checkpoint: a model on disk whose names, shapes and configuration are known and whose weights are not yet read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.family import Names
from octavo.gpt.quoting import one_line


class Slice(NamedTuple):
    """A checkpoint's tensor and the rows of a parameter that it fills."""

    file: TensorFile
    name: str
    first_row: int
    num_rows: int
    transposed: bool


class Part(NamedTuple):
    """Rows of a parameter that a format stores as a tensor of their own."""

    name: str  # of the stored tensor
    module: str  # the same without its leaf, {} for the layer's number
    first_row: int
    num_rows: int


def stored_parts(model: Model, parameter: str, names: Names) -> Iterator[Part]:
    """How a format that uses these names stores a parameter of the network: in one tensor, or in several."""
    module, _, leaf = parameter.rpartition(".")
    key, layer = pattern_of(module), "".join(re.findall(r"\.(\d+)\.", module))
    sources = names.get(key, (key,))
    stack: Any = model.get_submodule(module)
    rows = stack.part_rows if len(sources) > 1 else (model.get_parameter(parameter).shape[0],)
    for source, first, num_rows in zip(sources, accumulate(rows, initial=0), rows, strict=False):
        yield Part(f"{source.format(layer)}.{leaf}", source, first, num_rows)


def pattern_of(module: str) -> str:
    """The name of a module with {} for the layer's number."""
    return re.sub(r"\.\d+\.", ".{}.", module)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `tensors` goes by the names of the table `names`: to the file, and the name in that file."""

    index_file: Path  # the file that says what tensors there are
    config: ModelConfig
    tensors: Mapping[str, tuple[TensorFile, str]]
    names: Names
    transposed: tuple[str, ...] = ()  # modules whose weight lies [in_features, out_features]
    quantised: str | None = None  # what the weights are on disk, where they are widened

    def match(self, model: Model) -> dict[str, list[Slice]]:
        """The slices of every parameter of an empty model; ValueError names a tensor that is missing, odd or extra."""
        unused = dict(self.tensors)
        plan: dict[str, list[Slice]] = {}
        for parameter, weight in model.named_parameters():
            module, _, leaf = parameter.rpartition(".")
            transposed = pattern_of(module) in self.transposed and leaf == "weight"
            parts = list(stored_parts(model, parameter, self.names))
            plan[parameter] = [self._slice(part, weight, transposed) for part in parts]
            for part in parts:
                unused.pop(part.name)
        for file, name in unused.values():
            if name.endswith(".bias") and file.reads(file.tensors[name].dtype_name) and not file.read(name).any():
                continue  # quantisers give every module a bias; of zeros, it changes nothing
            raise ValueError(
                f"{file.path}: tensor {one_line(name, 80)} has no place in a {self.config.family} of this configuration"
            )
        return plan

    def _slice(self, part: Part, weight: Tensor, transposed: bool) -> Slice:
        if part.name not in self.tensors:
            raise ValueError(f"{self.index_file}: tensor {one_line(part.name, 80)} is missing")
        file, name = self.tensors[part.name]
        info, expected = file.tensors[name], (part.num_rows, *weight.shape[1:])
        if info.shape != (expected[::-1] if transposed else expected):
            wanted = list(expected[::-1] if transposed else expected)
            raise ValueError(
                f"{file.path}: tensor {one_line(name, 80)} is {list(info.shape)}, the configuration asks for {wanted}"
            )
        if not file.reads(info.dtype_name):
            raise file.unreadable(name)
        return Slice(file, name, part.first_row, part.num_rows, transposed)
