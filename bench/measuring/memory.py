"""The memory of contenders that share a process: what each held at most, whatever the others hold."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

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
        trim(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")

    def _read(self, name: str) -> int | None:
        """Bytes of the process by one of Linux's names: VmHWM the most there were, VmRSS those there are."""
        if self.device.type == "cuda":
            most = name == "VmHWM"
            return (torch.cuda.max_memory_allocated if most else torch.cuda.memory_allocated)(self.device)
        if not STATUS.is_file():
            return None
        lines = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith(name)]
        return int(lines[0]) * 1024 if lines else None


def trim(device: torch.device) -> None:
    """Give free memory back to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
