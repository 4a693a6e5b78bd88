"""The one reader of a model's files: regular files only, each failure at once and in one line that names the file."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from octavo.gpt.quoting import one_line

MAX_TEXT_BYTES = 2**28  # JSON and text are read whole; the largest tokenizers take a tenth of this
MAX_DIGITS = 100  # of an integer; transformers writes 10**30 where it means no limit

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def is_there(path: Path) -> bool:
    """Whether the name exists, be it as a file or not; ValueError where that cannot be told."""
    return _stat(path, missing_ok=True) is not None


def is_folder(path: Path) -> bool:
    """Whether the name is a folder, or a link to one; ValueError where that cannot be told."""
    if not is_there(path):
        return False
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; ValueError or FileNotFoundError for anything else, without waiting."""
    _require_regular(path, _stat(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise _refusal(path, error) from None
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(path, os.fstat(descriptor))  # another process may have put something else there
    except ValueError:
        file.close()
        raise
    return file


def size_of(file: BinaryIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_whole(path: Path) -> bytes:
    """All bytes of a file that is text, JSON or a small table."""
    with open_file(path) as file:
        size = size_of(file)
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"{path}: {size:,} bytes, at most {MAX_TEXT_BYTES:,} are read")
        try:
            return file.read(MAX_TEXT_BYTES)
        except OSError as error:
            raise _refusal(path, error) from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        return read_whole(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file; ValueError where the file holds none."""
    if not is_there(path):
        return {}
    value = parse_json(read_whole(path), f"{path}: not valid JSON")
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def parse_json(text: bytes, complaint: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text, whose integers have few digits; a ValueError begins with the complaint."""
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{complaint}: {error}") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _stat(path: Path, missing_ok: bool = False) -> os.stat_result | None:
    """What the name leads to; with `missing_ok`, what it is itself, None where it is not there."""
    try:
        return os.lstat(path) if missing_ok else os.stat(path)
    except (OSError, ValueError) as error:
        if missing_ok and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise _refusal(path, error) from None


def _require_regular(path: Path, found: os.stat_result | None) -> None:
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"{one_line(str(path))}: {KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, not a regular file"
        )


def _refusal(path: Path, error: OSError | ValueError) -> Exception:
    """The error to raise instead: one that is always one line and names the file."""
    name = one_line(str(path), 300)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{name}: no such file")
    if isinstance(error, OSError):
        reason = "its links lead in a circle" if error.errno == errno.ELOOP else error.strerror
        return ValueError(f"{name}: cannot be read: {reason}")
    return ValueError(f"{name}: no name of a file: {error}")
