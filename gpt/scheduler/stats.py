"""Stats: counts and times of an engine. Percentiles are over the last thousand completions."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from octavo.gpt.scheduler.scheduler import Scheduler

KEPT = 1000  # completions whose times are kept


@dataclass(eq=False, slots=True)
class Clock:
    """Moments of one completion, in seconds of `time.perf_counter`; None before they have come."""

    added: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None


class Stats:
    """Counters of one engine, and the times of its last completions."""

    def __init__(self) -> None:
        self.num_finished = 0
        self.num_prefilled = 0
        self.num_decoded = 0
        self._times: dict[str, deque[float]] = {
            name: deque(maxlen=KEPT) for name in ("queue_time", "time_to_first_token", "time_per_output_token")
        }

    def finish(self, clock: Clock, num_tokens: int) -> None:
        """Note that a completion of `num_tokens` ended now."""
        self.num_finished += 1
        if clock.started is not None:
            self._times["queue_time"].append(clock.started - clock.added)
        if clock.first_token is not None:
            self._times["time_to_first_token"].append(clock.first_token - clock.added)
            if num_tokens > 1:
                per_token = (time.perf_counter() - clock.first_token) / (num_tokens - 1)
                self._times["time_per_output_token"].append(per_token)

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Return name -> p50, p90, p99 in seconds; empty where nothing was timed yet."""
        return {name: _percentiles(list(times)) for name, times in self._times.items()}


def tell(scheduler: Scheduler, counts: Stats, others: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine does and did: counts, blocks, what others count, and percentiles of times in seconds."""
    pool = scheduler.pool
    return {
        "requests_running": scheduler.num_running,
        "requests_waiting": len(scheduler.waiting) + len(scheduler.swapped),
        "requests_finished": counts.num_finished,
        "requests_preempted": scheduler.num_preempted,
        "tokens_prefilled": counts.num_prefilled,
        "tokens_decoded": counts.num_decoded,
        "blocks_used": pool.num_used,
        "blocks_cached": pool.num_cached,
        "blocks_free": pool.num_available - pool.num_cached,
        "prefix_hit_rate": scheduler.num_hit_tokens / max(scheduler.num_prompt_tokens, 1),
        **others,
        **counts.percentiles(),
    }


def _percentiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}
