"""What the checkpoint formats share: named tensors at known places of a file, read a few rows at a time.

A file is mapped only while the bytes of one read are in use, so its pages never pile up in memory.
"""

import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.gpt.loading.files import open_file
from octavo.gpt.quoting import one_line

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUMBERS = FLOATS | {  # what parts of a quantised weight may also be
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """Where a tensor lies and how to read it."""

    shape: tuple[int, ...]
    dtype_name: str  # the format's own name of the number type: "BF16", "Q4_1"
    offset: int  # from the beginning of the file
    nbytes: int


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors in plain number types; the header was checked, no tensor was read yet."""

    path: Path
    tensors: dict[str, TensorInfo]

    def __post_init__(self) -> None:
        spans = sorted((info.offset, info.offset + info.nbytes, name) for name, info in self.tensors.items())
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise ValueError(
                    f"{self.path}: tensors {one_line(name, 80)} and {one_line(other, 80)} overlap at byte {start}"
                )

    def reads(self, dtype_name: str) -> bool:
        """Whether tensors of this number type can be read as floats."""
        return dtype_name in FLOATS

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of the first dimension, all where stop is None, as floats; a vector is one row."""
        info = self.tensors[name]
        if not self.reads(info.dtype_name):
            raise self.unreadable(name)
        raw = self.read_raw(name, start, stop)
        rows = self.decode(raw, info.dtype_name).view(len(raw), *info.shape[min(1, len(info.shape) - 1) :])
        return rows if len(info.shape) > 1 else rows[0]

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The bytes of such rows as the file has them: uint8 `[rows, row_bytes]`, mapped until they go."""
        info = self.tensors[name]
        num_rows = info.shape[0] if len(info.shape) > 1 else 1
        stop, row_bytes = num_rows if stop is None else stop, info.nbytes // num_rows
        raw = read_bytes(self.path, info.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.view(stop - start, row_bytes)

    def stored(self, name: str) -> Tensor:
        """The whole tensor in its own number type: mapped until it goes."""
        info = self.tensors[name]
        if info.dtype_name not in NUMBERS:
            raise self.unreadable(name)
        if not info.nbytes:
            raise ValueError(f"{self.path}: tensor {one_line(name, 80)} is empty")
        return read_bytes(self.path, info.offset, info.nbytes).view(NUMBERS[info.dtype_name]).view(info.shape)

    def unreadable(self, name: str) -> ValueError:
        """The error for a tensor whose number type cannot be read."""
        kind = one_line(self.tensors[name].dtype_name, 80)
        return ValueError(f"{self.path}: tensor {one_line(name, 80)} is of type {kind}, which cannot be read as floats")

    def decode(self, raw: Tensor, dtype_name: str) -> Tensor:
        """Bytes `[rows, row_bytes]` uint8 as floats `[rows, values]`."""
        return raw.view(FLOATS[dtype_name])


def read_bytes(path: Path, offset: int, nbytes: int) -> Tensor:
    """That part of the file as uint8 `[nbytes]`: mapped until the tensor goes, and writing to it changes no file."""
    skip = offset % mmap.ALLOCATIONGRANULARITY
    with open_file(path) as file:
        mapped = mmap.mmap(file.fileno(), skip + nbytes, access=mmap.ACCESS_COPY, offset=offset - skip)
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=skip, count=nbytes)


def require_inside(path: Path, name: str, info: TensorInfo, size: int) -> None:
    """ValueError unless the tensor ends within the file's `size` bytes."""
    end = info.offset + info.nbytes
    if end > size:
        raise ValueError(
            f"{path}: tensor {one_line(name, 80)} ends at byte {end:,}, the file at byte {size:,} (truncated download?)"
        )
