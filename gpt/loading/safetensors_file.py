"""safetensors files: eight bytes of length, a JSON header that names every tensor, then the bytes.

The header is checked against the file's size, tensor by tensor, before anything is read: what lies is refused by name.
Format: https://huggingface.co/docs/safetensors/index#format
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from octavo.gpt.loading.files import open_file, parse_json, size_of
from octavo.gpt.loading.tensor_file import NUMBERS, TensorFile, TensorInfo, require_inside
from octavo.gpt.quoting import one_line, quoted

ITEM_BYTES = {name: dtype.itemsize for name, dtype in NUMBERS.items()} | {"BOOL": 1}
MAX_DIMS = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def open_safetensors(path: Path) -> TensorFile:
    """The tensors of one file. ValueError names the file, and the tensor where one is at fault."""
    with open_file(path) as file:
        size = size_of(file)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{path}: not a safetensors file, or cut off in its header ({size:,} bytes)")
        header = _parse(path, file.read(length))
    header.pop("__metadata__", None)
    return TensorFile(path, {name: _info(path, name, entry, 8 + length, size) for name, entry in header.items()})


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{one_line(name, 80)} stands twice in the header")
        return table

    header = parse_json(text, f"{path}: the header is not valid", unique)
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is not a JSON object")
    return header


def _info(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path}: tensor {one_line(name, 80)} lacks a dtype, shape or data_offsets") from None
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)) or start > end:
        raise ValueError(
            f"{path}: tensor {one_line(name, 80)} has an impossible shape or place: "
            f"{quoted(shape)}, bytes {quoted(start)} to {quoted(end)}"
        )
    if len(shape) > MAX_DIMS:
        raise ValueError(
            f"{path}: tensor {one_line(name, 80)} has {len(shape):,} dimensions, at most {MAX_DIMS} are read"
        )
    info = TensorInfo(shape, str(kind), data_start + start, end - start)
    require_inside(path, name, info, size)
    needed = math.prod(shape) * ITEM_BYTES.get(info.dtype_name, 0)
    if info.dtype_name in ITEM_BYTES and needed != info.nbytes:
        raise ValueError(
            f"{path}: tensor {one_line(name, 80)} {list(shape)} {kind} needs {needed:,} bytes and has {info.nbytes:,}"
        )
    return info
