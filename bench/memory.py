"""The most memory a contender held, beyond what the process held before it was opened."""

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
        gc.collect()
        trim(device)
        self.reset()
        self.before = self._read("VmRSS")

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is allocated within and kept is not the contender's."""
        start = self._read("VmRSS")
        yield
        trim(self.device)
        end = self._read("VmRSS")
        if self.before is not None and start is not None and end is not None:
            self.before += end - start
        self.reset()

    def bytes(self) -> int | None:
        peak = self._read("VmHWM")
        return None if peak is None or self.before is None else max(0, peak - self.before)

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
