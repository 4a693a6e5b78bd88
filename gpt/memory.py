"""How long a request may be and how many cache blocks there are, from what the user asked and what the memory holds."""

import os

import torch

from octavo.gpt.cache import bytes_per_block
from octavo.gpt.config import EngineConfig, ModelConfig

CPU_CACHE_LIMIT = 4 * 2**30  # bytes; a quarter of the free memory if that is less
CUDA_SHARE = 0.85  # of the memory that is free once the weights are in


def plan_memory(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None,
    block_size: int,
    num_blocks: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> EngineConfig:
    """The engine's limits; ValueError naming both numbers where what was asked cannot be had."""
    if max_model_len is not None and max_model_len > model.context_size:
        raise ValueError(f"max_model_len ({max_model_len}) is more than the model's context of {model.context_size}")
    wanted = model.context_size if max_model_len is None else max_model_len
    sized = EngineConfig(wanted, block_size, num_blocks or 1, max_num_seqs, max_num_batched_tokens)
    if num_blocks is None:
        useful = max_num_seqs * -(-wanted // block_size)
        num_blocks = min(useful, _cache_bytes(device) // bytes_per_block(model, block_size, dtype))
    held = num_blocks * block_size
    if max_model_len is None:
        wanted = min(wanted, held)
    if wanted > held or num_blocks < 1:
        raise ValueError(f"max_model_len ({wanted}) needs more cache than the {held} tokens that num_blocks holds")
    return EngineConfig(wanted, sized.block_size, num_blocks, max_num_seqs, max_num_batched_tokens)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CPU_CACHE_LIMIT, free // 4)
