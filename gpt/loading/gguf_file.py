"""GGUF files, version 2 and 3: metadata, descriptions of the tensors, then the tensors, quantised or not.

Magic, version, number of tensors, number of keys; each key's name, type and value; each tensor's name, dimensions
(innermost first), type and offset; then, aligned, the bytes. Every count, length and offset is checked against the
file's size before anything of that size is made. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from octavo.gpt.loading.files import open_file, size_of
from octavo.gpt.loading.tensor_file import TensorFile, TensorInfo, require_inside
from octavo.gpt.quoting import one_line, quoted

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMS = 4
MAX_ENTRIES = 2**22  # of the metadata, of one array in it, and of the list of tensors
KINDS = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}


@dataclass(frozen=True)
class GGUFFile(TensorFile):
    """The tensors of a GGUF file, shapes in torch's order, and its metadata as plain Python values."""

    metadata: dict[str, Any]

    def reads(self, kind: str) -> bool:
        return super().reads(kind) or _dequantises(kind)

    def decode(self, raw: Tensor, kind: str) -> Tensor:
        if super().reads(kind):
            return super().decode(raw, kind)
        return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType[kind]))


@cache
def _dequantises(kind: str) -> bool:
    """Whether the gguf package can widen this type, found out by widening one block of zeros."""
    quantised = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[quantised][1]), np.uint8), quantised)
    except NotImplementedError:
        return False
    return True


def open_gguf(path: Path) -> GGUFFile:
    """Metadata and tensor descriptions. ValueError names the file, and the key or tensor at fault."""
    with open_file(path) as file:
        if (size := size_of(file)) < 24:
            raise ValueError(f"{path}: not a GGUF file ({size} bytes)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(path, data)
            num_tensors, num_keys = header.begin()
            metadata = header.metadata(num_keys)
            tensors = header.tensors(num_tensors, _alignment(path, metadata))
    return GGUFFile(path, tensors, metadata)


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{path}: general.alignment must be a power of two, not {quoted(alignment)}")
    return alignment


class _Header:
    """A cursor over the header that never passes the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.place = 0

    def take(self, format: str, what: str) -> tuple[Any, ...]:
        """The numbers of a struct format, little endian."""
        start, self.place = self.place, self.place + struct.calcsize(f"<{format}")
        if self.place > self.size:
            raise ValueError(f"{self.path}: the file ends inside {what} (truncated download?)")
        return struct.unpack_from(f"<{format}", self.data, start)

    def string(self, what: str) -> str:
        (length,) = self.take("Q", what)
        start, self.place = self.place, self.place + length
        if self.place > self.size:
            raise ValueError(f"{self.path}: {what} claims {length:,} bytes, more than the file has")
        try:
            return self.data[start : self.place].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is not valid UTF-8") from None

    def require(self, count: int, least_bytes: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, or that would become too many Python values."""
        if count > MAX_ENTRIES:
            raise ValueError(f"{self.path}: {what} claims {count:,} entries, at most {MAX_ENTRIES:,} are read")
        if count * least_bytes > self.size - self.place:
            raise ValueError(f"{self.path}: {what} claims {count:,} entries, more than the file has room for")

    def begin(self) -> tuple[int, int]:
        magic, version, num_tensors, num_keys = self.take("4sIQQ", "its first line")
        if magic != b"GGUF":
            raise ValueError(f"{self.path}: not a GGUF file (begins with {quoted(magic)})")
        if version not in (2, 3):
            raise ValueError(f"{self.path}: GGUF version {version} is not supported (2 and 3, little endian, are)")
        return num_tensors, num_keys

    def metadata(self, count: int) -> dict[str, Any]:
        self.require(count, 13, "the metadata")
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self.string(f"the name of key {index}")
            if key in metadata:
                raise ValueError(f"{self.path}: key {one_line(key, 80)} stands twice")
            what = f"key {one_line(key, 80)}"
            (kind,) = self.take("I", what)
            metadata[key] = self.array(key) if kind == ARRAY else self.value(kind, what)
        return metadata

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.string(what)
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: {what} has unknown type {kind}")
        return self.take(SCALARS[kind], what)[0]

    def array(self, key: str) -> list[Any]:
        what = f"key {one_line(key, 80)}"
        kind, count = self.take("IQ", what)
        if kind != STRING and kind not in SCALARS:
            raise ValueError(f"{self.path}: {what} is an array of unsupported type {kind}")
        self.require(count, 8 if kind == STRING else struct.calcsize(f"<{SCALARS[kind]}"), what)
        if kind == STRING:
            return [self.string(what) for _ in range(count)]
        return list(self.take(f"{count}{SCALARS[kind]}", what))

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        self.require(count, 32, "the list of tensors")
        relative: dict[str, TensorInfo] = {}
        for index in range(count):
            name, info = self.tensor(index, alignment)
            if name in relative:
                raise ValueError(f"{self.path}: tensor {one_line(name, 80)} stands twice")
            relative[name] = info
        data_start = -(-self.place // alignment) * alignment
        placed = {name: info._replace(offset=data_start + info.offset) for name, info in relative.items()}
        for name, info in placed.items():
            require_inside(self.path, name, info, self.size)
        return placed

    def tensor(self, index: int, alignment: int) -> tuple[str, TensorInfo]:
        name = self.string(f"the name of tensor {index}")
        what = f"tensor {one_line(name, 80)}"
        (num_dims,) = self.take("I", what)
        if not 1 <= num_dims <= MAX_DIMS:
            raise ValueError(f"{self.path}: {what} has {num_dims:,} dimensions")
        *dims, kind, offset = self.take(f"{num_dims}QIQ", what)
        if kind not in KINDS:
            raise ValueError(f"{self.path}: {what} has unknown type {kind}")
        kind_name, block, block_bytes = KINDS[kind]
        if 0 in dims or dims[0] % block:
            raise ValueError(f"{self.path}: {what} {dims} does not divide into blocks of {block} ({kind_name})")
        if offset % alignment:
            raise ValueError(f"{self.path}: {what} is not aligned to {alignment} bytes (offset {offset:,})")
        return name, TensorInfo(tuple(reversed(dims)), kind_name, offset, math.prod(dims) // block * block_bytes)
