"""The most memory a contender held, beyond what the process held before it was opened."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Of the GPU as PyTorch's allocator tells, else of the process as Linux tells; elsewhere unknown."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()
        self.before = self._peak()

    def reset(self) -> None:
        """Forget the peak so far; what nobody holds any more goes back to the system first."""
        release(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")

    def bytes(self) -> int | None:
        peak = self._peak()
        return None if peak is None or self.before is None else max(0, peak - self.before)

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not STATUS.is_file():
            return None
        peaks = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peaks[0]) * 1024 if peaks else None


def release(device: torch.device) -> None:
    """Give memory back to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
