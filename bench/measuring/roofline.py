"""What the hardware allows: measured bandwidth and matmul rate, and the bytes and FLOPs that decoding cannot avoid."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from octavo.bench.measuring.timing import laps, median
from octavo.gpt.loading.loader import DTYPES
from octavo.gpt.models.base import Embedding
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import empty_network


class Peaks(NamedTuple):
    copy_bytes_per_s: float
    read_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]


def measure_peaks(device: torch.device, dtypes: Sequence[str]) -> Peaks:
    """Medians of a few rounds each, a second or two in all."""
    return Peaks(*_streams(device), {dtype: _matmul_rate(device, dtype) for dtype in dtypes})


def _streams(device: torch.device) -> tuple[float, float]:
    """Bytes a second of a large copy and of a large sum."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), device)
    read = _seconds(lambda: source.sum(), device)
    if device.type == "cpu":
        read = min(read, _plain_read(source))
    return 2 * size / copy, size / read


def _plain_read(source: torch.Tensor) -> float:
    """Seconds in which as many threads as PyTorch has read it, a part each: faster than a sum of small error."""
    num_threads = torch.get_num_threads()
    parts = np.array_split(source.numpy(), num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        return _seconds(lambda: list(pool.map(_total, parts)), source.device)


@njit(nogil=True, fastmath=True)
def _total(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(values.size):
        total += values[i]
    return total


def _matmul_rate(device: torch.device, dtype: str) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(size, size, dtype=DTYPES[dtype], device=device) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def _seconds(call: Callable[[], Any], device: torch.device, rounds: int = 7) -> float:
    call()
    return median(laps(call, device, rounds))


def step_weights(config: ModelConfig) -> int:
    """Values of matrices that one decode step reads: all but tables of rows, unless such a table is the head too."""
    model = empty_network(config)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, Embedding)}
    read = [weight for weight in model.parameters() if weight.dim() > 1 and id(weight) not in tables]
    return sum(weight.numel() for weight in read) + (model.embedding.weight.numel() if config.tied_embeddings else 0)


def step_bytes(config: ModelConfig, weight_bytes: float, value_bytes: int, batch: int, context: int) -> int:
    """Bytes that a step over `batch` contexts must read: each weight once, each context's keys and values once.

    weight_bytes is the mean size of a weight, value_bytes the size of a cached value.
    """
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim * batch * context
    return int(step_weights(config) * weight_bytes + cached * value_bytes)


def step_flops(config: ModelConfig, batch: int, context: int) -> int:
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * context
    return batch * (2 * step_weights(config) + attention)


def prefill_flops(config: ModelConfig, batch: int, prompt_tokens: int) -> int:
    """The head only at the last position of each prompt; attention only below the diagonal."""
    head = config.vocab_size * config.dim
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * prompt_tokens**2
    return batch * (2 * (step_weights(config) - head) * prompt_tokens + 2 * head + attention)
