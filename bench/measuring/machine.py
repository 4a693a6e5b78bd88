"""What is measured on: the processor, the versions, the commit, the memory of each contender.

Everything that cannot be read is None.
"""

import contextlib
import ctypes
import gc
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

NOT_MEASURED = (":(top,exclude)bench/results", ":(top,exclude)README.md")  # a run may write them, and stays clean

LOOK_S = 0.2  # for so long the others are watched

PACKAGES = ("octavo", "torch", "triton", "numba", "transformers", "numpy")


def describe(device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of `records.Run` that describe machine, software and moment."""
    here = Path(__file__).parent.parent
    commit = _output("git", "-C", str(here), "rev-parse", "HEAD")
    return {
        "command_line": shlex.join(["python", "-m", "octavo.bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "dirty": bool(changes(here)) if commit else None,
        "device": device.type,
        "device_name": device_name(device),
        "num_cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(device),
        "driver": _nvidia("driver_version") if device.type == "cuda" else None,
        "clocks": _clocks(device),
        "load": busy_cores(),
        "versions": {"python": platform.python_version(), **versions((*PACKAGES, *packages))},
    }


def changes(folder: Path) -> str:
    """The tracked files around `folder` that differ from the commit, as git lists them; results are no change."""
    return _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "--", ":/", *NOT_MEASURED)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = _cpuinfo("model name")
    return named[0] if named else platform.processor() or platform.machine()


def num_cores() -> int:
    """Physical cores among those this process may run on."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


def busy_cores() -> float | None:
    """How many cores others keep busy, while this process sleeps; None where the system does not tell."""
    before = _busy_s()
    time.sleep(LOOK_S)
    after = _busy_s()
    return None if before is None or after is None else round((after - before) / LOOK_S, 2)


def _busy_s() -> float | None:
    """Seconds that all cores together were not idle, those taken by other guests of the host included."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, *rest = map(int, path.read_text().partition("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed ones of these distributions, with their versions."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _clocks(device: torch.device) -> str | None:
    if device.type == "cuda":
        return _nvidia("clocks.sm,clocks.mem,clocks.max.sm,power.limit")
    speeds = [float(speed) for speed in _cpuinfo("cpu MHz")]
    return f"{max(speeds):.0f} MHz" if speeds else None


def _cpuinfo(name: str) -> list[str]:
    return _values(Path("/proc/cpuinfo"), name)


def _values(path: Path, name: str) -> list[str]:
    """What Linux tells under a name that begins so, of each core or once; nothing elsewhere."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def _nvidia(query: str) -> str | None:
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return _output("nvidia-smi", f"--id={index}", f"--query-gpu={query}", "--format=csv,noheader") or None


def _output(*command: str) -> str:
    """What a program prints; nothing where it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Of the GPU as PyTorch's allocator tells, else of the process as Linux tells; elsewhere unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held = 0  # bytes allocated while it was at work, and kept
        self.peak: int | None = None  # bytes, of the last time it was at work

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """What is allocated within is the contender's."""
        self._begin()
        start = self._read("VmRSS")
        yield
        most = self._read("VmHWM")
        self._begin()
        end = self._read("VmRSS")
        if start is not None and most is not None and end is not None:
            self.peak = max(0, self.held + most - start)
            self.held += end - start

    def _begin(self) -> None:
        """Give free memory back, and forget the peak so far."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")

    def _read(self, name: str) -> int | None:
        """Bytes of the process by one of Linux's names: VmHWM the most there were, VmRSS those there are."""
        if self.device.type == "cuda":
            most = name == "VmHWM"
            return (torch.cuda.max_memory_allocated if most else torch.cuda.memory_allocated)(self.device)
        found = _values(STATUS, name)
        return int(found[0].split()[0]) * 1024 if found else None
