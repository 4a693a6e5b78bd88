"""Metrics: counts and times for Prometheus, under vLLM's names where they mean the same."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from octavo.gpt.outputs import RequestOutput

SECONDS = 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0
TOKENS = tuple(2.0**i for i in range(0, 18))

GAUGES = {  # of the engine's statistics
    "num_requests_running": "completions that are decoded",
    "num_requests_waiting": "completions that wait, or were set aside",
    "kv_cache_usage_perc": "share of the cache's blocks that running completions hold; 1 is all",
}
COUNTERS = {
    "prompt_tokens": "tokens of prompts",
    "generation_tokens": "tokens that were generated",
    "prefix_cache_queries": "prompt tokens that were looked for in the prefix cache",
    "prefix_cache_hits": "prompt tokens that were found there",
    "num_preemptions": "completions that were set aside for others",
}
HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("from the request's coming to its first token", SECONDS),
    "request_time_per_output_token_seconds": ("mean time between two tokens of a completion", SECONDS),
    "request_queue_time_seconds": ("from the request's coming to its first step", SECONDS),
    "e2e_request_latency_seconds": ("from the request's coming to its last token", SECONDS),
    "request_prompt_tokens": ("tokens of a prompt", TOKENS),
    "request_generation_tokens": ("tokens of a completion", TOKENS),
}


class Metrics:
    """What is counted of one model's requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"labelnames": ["model_name"], "registry": self.registry}
        self._gauges = {name: Gauge(f"vllm:{name}", text, **own) for name, text in GAUGES.items()}
        self._counters = {name: Counter(f"vllm:{name}", text, **own) for name, text in COUNTERS.items()}
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, buckets=buckets, **own)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        own["labelnames"] = ["model_name", "finished_reason"]
        self._ends = Counter("vllm:request_success", "completions that ended, by reason", **own)
        self._num_preempted = 0

    def ended(self, model: str, request: RequestOutput) -> None:
        """Count a request that is not followed any more; one whose client left ends with the reason abort."""
        times, made = request.metrics, sum(len(output.token_ids) for output in request.outputs)
        self._count(model, "prompt_tokens", len(request.prompt_token_ids))
        self._count(model, "generation_tokens", made)
        self._count(model, "prefix_cache_queries", len(request.prompt_token_ids))
        self._count(model, "prefix_cache_hits", request.num_cached_tokens or 0)
        for output in request.outputs:
            self._ends.labels(model, output.finish_reason or "abort").inc()
            self._observe(model, "request_generation_tokens", len(output.token_ids))
        self._observe(model, "request_prompt_tokens", len(request.prompt_token_ids))
        if times.first_token_ts:
            self._observe(model, "time_to_first_token_seconds", times.first_token_latency)
            self._observe(model, "request_queue_time_seconds", times.scheduled_ts - times.queued_ts)
            self._observe(model, "e2e_request_latency_seconds", times.last_token_ts - times.queued_ts)
            if steps := max(len(output.token_ids) for output in request.outputs) - 1:
                each = (times.last_token_ts - times.first_token_ts) / steps
                self._observe(model, "request_time_per_output_token_seconds", each)

    def text(self, model: str, stats: dict[str, Any], num_blocks: int) -> bytes:
        """Return everything in Prometheus' form; stats are those of `LLM.stats`."""
        values = stats["requests_running"], stats["requests_waiting"], stats["blocks_used"] / num_blocks
        for name, value in zip(GAUGES, values, strict=True):
            self._gauges[name].labels(model).set(value)
        self._count(model, "num_preemptions", stats["requests_preempted"] - self._num_preempted)
        self._num_preempted = stats["requests_preempted"]
        return generate_latest(self.registry)

    def _count(self, model: str, name: str, number: float) -> None:
        self._counters[name].labels(model).inc(number)

    def _observe(self, model: str, name: str, value: float) -> None:
        self._histograms[name].labels(model).observe(value)
