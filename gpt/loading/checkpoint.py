"""Checkpoint: a model on disk whose names, shapes and configuration are known and whose weights are not yet read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.base import LayerNorm, Model, RMSNorm
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.family import Names
from octavo.gpt.quoting import one_line
from octavo.kernels.weights import BlockWeight, Stacked, UnreadWeight, Weight

HALVES = "F16", "BF16"


class Slice(NamedTuple):
    """A checkpoint's tensor and the rows of a parameter that it fills."""

    file: TensorFile
    name: str
    first_row: int
    num_rows: int
    transposed: bool
    offset: float = 0.0  # what is added to the stored values
    group: int = 0  # rows of q, k and v lie together for each head of so many values; 0: all of q, then k, then v

    @property
    def is_plain(self) -> bool:
        """Whether the rows of the parameter are those of the file."""
        return not (self.transposed or self.offset or self.group)

    def rows(self, start: int, stop: int, kept: frozenset[str], dtype: torch.dtype) -> Tensor | BlockWeight:
        """Rows of a matrix: in the file's blocks where their format is one of `kept`, else 16 bits or that dtype."""
        kind = self.file.tensors[self.name].dtype_name
        if kind.lower() in kept:
            return BlockWeight(self.file.read_raw(self.name, start, stop), kind.lower())
        rows = self.file.read(self.name, start, stop)
        return rows if kind in HALVES else rows.to(dtype)

    def kind(self, kept: frozenset[str]) -> str:
        """What `rows` gives: a format, a type of 16 bits, or nothing for the dtype that it was told."""
        name = self.file.tensors[self.name].dtype_name
        return name if name in HALVES or name.lower() in kept else ""


def unread(slices: Sequence[Slice], in_features: int, kept: frozenset[str], dtype: torch.dtype) -> Weight:
    """A weight that lies in the file in these slices, which are plain, as `pack` takes it: a part for each format."""
    parts = [_unread(list(run), in_features, kept, dtype) for _, run in groupby(slices, lambda each: each.kind(kept))]
    return parts[0] if len(parts) == 1 else Stacked(tuple(parts))


def _unread(slices: list[Slice], in_features: int, kept: frozenset[str], dtype: torch.dtype) -> UnreadWeight:
    """Slices of one format."""
    first = slices[0].first_row

    def rows(start: int, stop: int) -> Tensor | BlockWeight:
        found = []
        for each in slices:
            begin = each.first_row - first
            low, high = max(start, begin), min(stop, begin + each.num_rows)
            if low < high:
                found.append(each.rows(low - begin, high - begin, kept, dtype))
        if len(found) == 1:
            return found[0]
        blocks = [part for part in found if isinstance(part, BlockWeight)]
        if blocks:
            return blocks[0]._replace(blocks=torch.cat([part.blocks for part in blocks]))
        return torch.cat([part for part in found if isinstance(part, Tensor)])

    return UnreadWeight(sum(each.num_rows for each in slices), in_features, rows)


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
    norm_offset: float = 0.0  # what is added to the stored weights of norms
    keeps_blocks: bool = False  # whether a weight may stay as the file has it
    grouped: tuple[str, ...] = ()  # modules whose rows of q, k and v are grouped by head

    def match(self, model: Model, partly: bool = False) -> dict[str, list[Slice]]:
        """The slices of every parameter of an empty model; ValueError names a tensor that is missing, odd or extra.

        partly: parameters of which there is no tensor at all are left out.
        """
        unused = dict(self.tensors)
        plan: dict[str, list[Slice]] = {}
        for parameter, weight in model.named_parameters():
            module, _, leaf = parameter.rpartition(".")
            transposed = pattern_of(module) in self.transposed and leaf == "weight"
            parts = list(stored_parts(model, parameter, self.names))
            if partly and not any(part.name in self.tensors for part in parts):
                continue
            is_norm = leaf == "weight" and isinstance(model.get_submodule(module), (RMSNorm, LayerNorm))
            offset = self.norm_offset if is_norm else 0.0
            more: dict[str, Any] = {
                "offset": offset,
                "group": self.config.head_dim if pattern_of(module) in self.grouped else 0,
            }
            plan[parameter] = [self._slice(part, weight, transposed)._replace(**more) for part in parts]
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
