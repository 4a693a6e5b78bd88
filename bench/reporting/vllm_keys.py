"""A load as `vllm bench serve --save-result` writes it, so that what reads those files reads ours. Times are in ms."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.bench.measuring.load_generator import Served
from octavo.bench.measuring.workloads import Load


def vllm_result(served: Sequence[Served], load: Load, model: str, endpoint: str) -> dict[str, Any]:
    """The keys of vLLM's vllm/benchmarks/serve.py. All times count from the moment a request was due."""
    done = [request for request in served if request.times]
    duration = max((request.times[-1] for request in done), default=0.0) - min(request.due for request in served)
    duration = duration if done else 0.0
    inputs, outputs = [request.prompt_tokens for request in done], [len(request.times) for request in done]
    ends = [request.times[-1] - request.due for request in done]
    decoded = [(request.times[-1] - request.times[0], len(request.times) - 1) for request in done]
    per_second = 1 / duration if duration else 0.0
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": endpoint,
        "backend": endpoint,
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(served),
        "request_rate": load.level if load.kind == "open" else "inf",
        "burstiness": 1.0,
        "max_concurrency": int(load.level) if load.kind == "closed" else None,
        "duration": duration,
        "completed": len(done),
        "failed": len(served) - len(done),
        "total_input_tokens": sum(inputs),
        "total_output_tokens": sum(outputs),
        "request_throughput": len(done) * per_second,
        "output_throughput": sum(outputs) * per_second,
        "total_token_throughput": (sum(inputs) + sum(outputs)) * per_second,
        "input_lens": inputs,
        "output_lens": outputs,
        "ttfts": [request.ttft for request in done],
        "itls": [request.gaps for request in done],
        **_spread("ttft", [request.ttft for request in done]),
        **_spread("tpot", [seconds / gaps for seconds, gaps in decoded if gaps]),
        **_spread("itl", [gap for request in done for gap in request.gaps]),
        **_spread("e2el", ends),
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, deviation and 99th percentile; zeros where nothing was measured."""
    values = 1e3 * np.array(seconds or [0.0])
    kinds = {"mean": values.mean(), "median": np.median(values), "std": values.std(), "p99": np.percentile(values, 99)}
    return {f"{kind}_{name}_ms": float(value) for kind, value in kinds.items()}


def headline(result: dict[str, Any], load: Load) -> str:
    """A result in one line."""
    return (
        f"{load}: {result['completed']} of {result['num_prompts']} requests, "
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.1f} tokens/s; "
        f"first token {result['median_ttft_ms']:.0f} ms (p99 {result['p99_ttft_ms']:.0f}), "
        f"per token {result['median_tpot_ms']:.1f} ms (p99 {result['p99_tpot_ms']:.1f})"
    )
