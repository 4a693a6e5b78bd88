"""Split GGUF files: a model in several files, of which the first holds the metadata and each its own tensors.

llama.cpp's gguf-split names them `name-00001-of-00003.gguf` and so on, and says in each file's metadata which it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.gpt.loading.files import is_there
from octavo.gpt.loading.gguf_file import GGUFFile, open_gguf
from octavo.gpt.loading.tensor_file import TensorInfo
from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.quoting import one_line

NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)


@dataclass(frozen=True)
class GGUFParts:
    """The tensors of all parts of a model as those of one file, and the first part's metadata."""

    path: Path
    metadata: dict[str, Any]
    owners: Mapping[str, GGUFFile]  # the part of every tensor

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: part.tensors[name] for name, part in self.owners.items()}

    def read(self, name: str) -> Tensor:
        return self.owners[name].read(name)


def open_gguf_parts(path: Path) -> GGUFParts:
    """A GGUF file, and with it the other parts where it is one of several. ValueError names the part at fault."""
    file = open_gguf(path)
    if _count(file) == 1:
        return GGUFParts(path, file.metadata, dict.fromkeys(file.tensors, file))
    paths = part_paths(path, _count(file))
    parts = [file if each == path else _open_part(each, path) for each in paths]
    owners: dict[str, GGUFFile] = {}
    for number, part in enumerate(parts):
        _require_part(part, number, len(parts))
        for name in part.tensors:
            if name in owners:
                raise ValueError(f"{part.path}: tensor {one_line(name, 80)} is also in {owners[name].path.name}")
            owners[name] = part
    first = parts[0]
    total = ConfigReader(first.path, first.metadata, "split.").count("tensors.count", len(owners))
    if total != len(owners):
        raise ValueError(f"{first.path}: split.tensors.count is {total}, the {len(parts)} parts have {len(owners)}")
    return GGUFParts(first.path, first.metadata, owners)


def part_paths(path: Path, count: int) -> list[Path]:
    """The files of a model in that many parts, by the name of one of them."""
    match = NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise ValueError(
            f"{path}: one of {count} parts by its split.count, but its name does not end in -00001-of-{count:05}.gguf"
        )
    return [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}{match[4]}") for number in range(1, count + 1)]


def _open_part(path: Path, asked: Path) -> GGUFFile:
    if not is_there(path):
        raise FileNotFoundError(f"{path}: this part of {one_line(asked.name, 80)} is missing")
    return open_gguf(path)


def _require_part(part: GGUFFile, number: int, count: int) -> None:
    """ValueError unless the file says that it is this part."""
    claimed = part.metadata.get("split.no")
    if _count(part) != count or claimed != number:
        raise ValueError(
            f"{part.path}: part {number + 1} of {count} by its name, "
            f"but split.no {one_line(repr(claimed), 80)} of split.count {_count(part)} inside"
        )


def _count(file: GGUFFile) -> int:
    return ConfigReader(file.path, file.metadata, "split.").count("count", 1)
