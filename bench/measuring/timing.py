"""Timing: CUDA events on a GPU, `perf_counter` elsewhere. Report medians with their spread, never minima."""

import time
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

NOISY = 0.25  # a spread beyond this share of the median is marked beside the figure

PATIENCE = 10  # times the seconds to be timed, spent on cold caches as well
PROBE_MATRICES, PROBE_DIM = 96, 576  # 127 MB, more than a cache holds

FALLBACK_CACHE_BYTES = 32 * 2**20  # the last-level cache of a machine that does not tell its size


class Stopwatch:
    """Takes times on the device's own clock; they are read after the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds between each mark and the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [before.elapsed_time(after) / 1e3 for before, after in pairs]
        return [after - before for before, after in pairs]


def laps(call: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each of so many calls, queued one behind the other."""
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(rounds):
        call()
        watch.mark()
    return watch.laps()


class Probe:
    """Times fixed pieces of work: they tell how fast the machine is at this moment.

    Each is a chain of products of some rows with matrices from memory, on all threads: of few rows in a decode step, of
    many in a prefill.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.matrices = torch.full((PROBE_MATRICES, PROBE_DIM, PROBE_DIM), 1 / PROBE_DIM, device=device).unbind()

    def decode_probe(self) -> float:
        """Seconds of work that slows down as a decode step does."""
        return self._seconds(4, 3 * self.matrices)

    def prefill_probe(self) -> float:
        """Seconds of work that slows down as a prefill does."""
        return self._seconds(512, self.matrices[:16])

    def _seconds(self, num_rows: int, matrices: Sequence[torch.Tensor]) -> float:
        rows = torch.ones(num_rows, PROBE_DIM, device=self.device)
        return round(laps(lambda: reduce(torch.nn.functional.linear, matrices, rows), self.device, 1)[0], 6)


class ColdCaches:
    """Overwrites the last-level cache, so that the call timed next reads its operands from memory, as a step does."""

    def __init__(self, device: torch.device) -> None:
        # On a GPU the overwriting must last longer than the host needs to queue what is timed behind it.
        size = max(2 * _cache_bytes(device), 2**28 if device.type == "cuda" else 0)
        self.buffer = torch.empty(size, dtype=torch.int8, device=device)

    def __call__(self) -> None:
        self.buffer.zero_()


def measure(
    call: Callable[[], Any], device: torch.device, seconds: float, min_rounds: int = 5, max_rounds: int = 1000
) -> list[float]:
    """Seconds of each call, caches cold, until `seconds` have been timed; two calls before them are not counted.

    A call much shorter than the overwriting of a large cache is timed as often as `PATIENCE` times `seconds` allow.
    """
    for _ in range(2):
        call()
    flush = ColdCaches(device)
    found: list[float] = []
    last = time.perf_counter() + PATIENCE * seconds
    while len(found) < min_rounds or (sum(found) < seconds and len(found) < max_rounds and time.perf_counter() < last):
        watch = Stopwatch(device)
        for _ in range(min_rounds):
            flush()
            watch.mark()
            call()
            watch.mark()
        found += watch.laps()[::2]
    return found


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which that share of the samples lies, interpolated."""
    return float(np.quantile(samples, share))


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 0.5)


def spread(samples: Sequence[float]) -> float:
    """(p90 - p10) / median."""
    return (percentile(samples, 0.9) - percentile(samples, 0.1)) / median(samples)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes) or FALLBACK_CACHE_BYTES
