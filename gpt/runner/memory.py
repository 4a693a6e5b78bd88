"""How long a request may be and how many cache blocks there are, from what the user asked and what the memory holds."""

import os
from dataclasses import replace
from typing import Any

import torch

from octavo.gpt.models.config import ModelConfig
from octavo.gpt.runner.kv_cache import bytes_per_block
from octavo.gpt.scheduler.config import EngineConfig

CPU_CACHE_LIMIT = 4 * 2**30  # bytes; a quarter of the free memory if that is less
CUDA_SHARE = 0.85  # of the memory that is free once the weights are in


def plan_memory(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None,
    num_blocks: int | None,
    **limits: Any,
) -> EngineConfig:
    """The engine's limits, `limits` being EngineConfig's other fields; ValueError naming both numbers where what was
    asked cannot be had."""
    if max_model_len is not None and max_model_len > model.context_size:
        raise ValueError(f"max_model_len ({max_model_len}) is more than the model's context of {model.context_size}")
    wanted = model.context_size if max_model_len is None else max_model_len
    asked = EngineConfig(wanted, num_blocks=1 if num_blocks is None else num_blocks, **limits)
    if num_blocks is None:
        useful = asked.max_num_seqs * -(-wanted // asked.block_size)
        num_blocks = min(useful, _cache_bytes(device) // bytes_per_block(model, asked.block_size, dtype))
    held = num_blocks * asked.block_size
    if max_model_len is None:
        wanted = min(wanted, held)
    if wanted > held or num_blocks < 1:
        raise ValueError(f"max_model_len ({wanted}) needs more cache than the {held} tokens that num_blocks holds")
    return replace(asked, max_model_len=wanted, num_blocks=num_blocks)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CPU_CACHE_LIMIT, free // 4)
