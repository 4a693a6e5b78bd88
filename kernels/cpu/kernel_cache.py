"""Machine code of the CPU kernels on disk: whole and made of exactly these sources, or compiled again.

numba's own cache looks at the source file of the outer function only, trusts every file that it finds, and raises where
it cannot write. Here a file is named by a hash of all that the code depends on, and begins with a hash of what follows.
"""

import os
import pickle
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

CHECK = sha256().digest_size  # bytes before the code
OPTIONS = "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT"  # of numba, that shape the code


def digest_of(folder: Path, *others: Path) -> str:
    """A hash of the names and contents of all Python files below a folder, and of others; nothing where it has none."""
    if sources := sorted(folder.rglob("*.py")):
        sources += (other for other in others if other.is_file())
    parts = [str(source.relative_to(folder.parent)).encode() + b"\0" + source.read_bytes() for source in sources]
    return sha256(b"\0".join(parts)).hexdigest() if parts else ""


HERE = Path(__file__).parent
MATH = HERE.parent / "sampling_math.py"  # whose constants are part of compiled code
VERSIONS = numba.__version__, llvmlite.__version__, sys.version
SOURCES = digest_of(HERE, MATH)  # taken on import: of the code that runs, were the files replaced meanwhile


class KernelCache(NullCache):
    """Where numba looks for a compiled function before it compiles, and leaves it afterwards. It never raises."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        code = self.read(self.key(sig, target_context.codegen()))
        return None if code is None else CompileResult._rebuild(target_context, *pickle.loads(code))

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        self.write(self.key(sig, data.codegen), dumps(data._reduce()))

    def read(self, key: bytes) -> bytes | None:
        """What was kept under a key."""
        found = (read(folder / self._file(key), key) for folder in folders())
        return next((code for code in found if code is not None), None)

    def write(self, key: bytes, code: bytes) -> None:
        """Keep the code under a key, or warn once that nothing can be kept."""
        reasons = []
        for folder in folders():
            try:
                return write(folder / self._file(key), key, code)
            except OSError as error:
                reasons.append(f"{error.strerror or error}: {folder}")
        _warn_once(reasons[0] if reasons else "there is no home folder")

    def _file(self, key: bytes) -> str:
        return f"{self.name}-{key.hex()[:20]}.kernel"

    def key(self, sig: Any, codegen: Any) -> bytes:
        """A hash of all that the machine code depends on."""
        options = [str(getattr(config, name, "")) for name in OPTIONS]
        parts = (SOURCES, self.name, sig, codegen.magic_tuple(), options, *VERSIONS)
        return sha256("\0".join(map(str, parts)).encode()).digest()


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether its machine code may be kept: the key holds the sources below this folder, its own among them."""
    return bool(SOURCES) and function.__module__.startswith(__name__.rpartition(".")[0] + ".")


def folders() -> Iterator[Path]:
    """Where machine code may lie: in NUMBA_CACHE_DIR if that is set, else beside the sources or in the user's cache."""
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR) / "octavo"
        return
    yield HERE / "__pycache__"
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):  # a user of no name, without HOME
        if (user := user.expanduser()).is_absolute():
            yield user / "octavo" / "kernels"


def read(path: Path, key: bytes) -> bytes | None:
    """What was written under that key; None if the file is missing, cut, changed, or cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    check, code = content[:CHECK], content[CHECK:]
    return code if check == sha256(key + code).digest() else None


def write(path: Path, key: bytes, code: bytes) -> None:
    """Keep the code, under another name until it is whole; OSError where that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_bytes(sha256(key + code).digest() + code)
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _warn_once(reason: str) -> None:
    if not _warned:
        _warned.append(reason)
        text = f"compiled CPU kernels cannot be kept: {reason}; set NUMBA_CACHE_DIR to a folder that can be written"
        warnings.warn_explicit(text, RuntimeWarning, __file__, 0)  # one line, without one of this source


_warned: list[str] = []  # why, once in a process
