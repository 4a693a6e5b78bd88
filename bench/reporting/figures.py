"""From times to figures: what a line of results says of a cell."""

from typing import Any

from octavo.bench.measuring.roofline import prefill_flops, step_bytes, step_flops
from octavo.bench.measuring.timing import median, percentile, spread
from octavo.bench.measuring.workloads import Cell
from octavo.bench.peers.base import Contender, Generation
from octavo.bench.peers.sources import Source
from octavo.bench.reporting.schema import Run


def identity(source: Source, cell: Cell, name: str, version: str, dtype: str) -> dict[str, Any]:
    """The fields of `records.Decode` that say what was measured."""
    return {
        "model": source.name,
        "dummy": source.dummy,
        "contender": name,
        "version": version,
        "dtype": dtype,
        "batch": cell.batch,
        "context": cell.context,
        "prompt_tokens": cell.prompt_tokens,
        "new_tokens": cell.new_tokens,
    }


def figures(source: Source, cell: Cell, contender: Contender, repeats: list[Generation], run: Run) -> dict[str, Any]:
    """The fields that follow from the repeats, of which there is at least one."""
    first = [answer.ttft_s for answer in repeats]
    steps = [step for answer in repeats for step in answer.step_s]
    means = any(answer.steps_are_means for answer in repeats)
    ttft, tpot = median(first), median(steps)
    seen = cell.prompt_tokens + cell.new_tokens // 2  # by the middle step
    moved = step_bytes(source.config, contender.weight_bytes, contender.value_bytes, cell.batch, seen)
    rate = run.matmul_flops_per_s.get(contender.dtype)
    return {
        "ttft_s": [round(value, 7) for value in first],
        "step_s": [[round(step, 7) for step in answer.step_s] for answer in repeats],
        "steps_are_means": means,
        "ttft_median_s": ttft,
        "prefill_tokens_per_s": cell.batch * cell.prompt_tokens / ttft,
        "tpot_median_s": tpot,
        "tpot_p90_s": None if means else percentile(steps, 0.90),
        "tpot_p99_s": None if means else percentile(steps, 0.99),
        "decode_tokens_per_s": cell.batch / tpot,
        "tpot_spread": spread(steps),
        "ttft_spread": spread(first),
        "step_bytes": moved,
        "bandwidth_share": moved / tpot / run.bandwidth,
        "compute_share": rate and step_flops(source.config, cell.batch, seen) / tpot / rate,
        "prefill_compute_share": rate and prefill_flops(source.config, cell.batch, cell.prompt_tokens) / ttft / rate,
    }
