"""PagedCache: the tensors that block numbers index, and how many blocks the memory holds."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.gpt.models.config import ModelConfig
from octavo.gpt.runner.transfer import to_device, to_host
from octavo.gpt.scheduler.config import EngineConfig

CPU_CACHE_LIMIT = 4 * 2**30  # bytes; a quarter of the free memory if that is less
CUDA_SHARE = 0.85  # of the memory that is free once the weights are loaded


class PagedCache:
    """Keys and values of all layers, `[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]`."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.data = torch.empty(self._shape, dtype=dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.data]
        self._host: dict[int, Tensor] = {}  # seq_id -> the content of its blocks

    def release(self) -> None:
        """Free the memory of all blocks; none may be used until `restore`."""
        self.data, self.layers = self.data.new_empty(0), []

    def restore(self) -> None:
        """Take memory for the blocks again, which hold nothing."""
        self.data = self.data.new_empty(self._shape)
        self.layers = [(layer[0], layer[1]) for layer in self.data]

    def swap_out(self, seq_id: int, blocks: list[int]) -> None:
        """Copy these blocks to host memory under the sequence's number."""
        self._host[seq_id] = to_host(self.data.index_select(2, self._indices(blocks)))

    def swap_in(self, seq_id: int, blocks: list[int]) -> None:
        """Copy them back, into blocks of any numbers."""
        content = self._host.pop(seq_id).to(self.data.device, non_blocking=True)
        self.data.index_copy_(2, self._indices(blocks), content)

    def free(self, seq_id: int) -> None:
        """Drop the copy in host memory, if there is one."""
        self._host.pop(seq_id, None)

    def reset(self) -> None:
        """Drop every copy in host memory."""
        self._host.clear()

    def _indices(self, blocks: list[int]) -> Tensor:
        return to_device(blocks, torch.int64, self.data.device)


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, keys and values, in bytes."""
    return config.num_layers * 2 * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize


def plan_memory(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None,
    num_blocks: int | None,
    **limits: Any,
) -> EngineConfig:
    """Return the engine's limits: what was asked for, and as many cache blocks as are useful and fit the memory.

    limits are EngineConfig's other fields. ValueError naming both numbers where what was asked cannot be had.
    """
    if max_model_len is not None and max_model_len > model.longest_context:
        raise ValueError(f"max_model_len ({max_model_len}) is more than the model's context of {model.longest_context}")
    wanted = model.context_size if max_model_len is None else max_model_len
    limits["sliding_window"] = model.attention_window
    asked = EngineConfig(wanted, num_blocks=1 if num_blocks is None else num_blocks, **limits)
    if num_blocks is None:
        useful = asked.max_num_seqs * asked.max_blocks_per_seq
        num_blocks = min(useful, _cache_bytes(device) // bytes_per_block(model, asked.block_size, dtype))
    held = num_blocks * asked.block_size
    if max_model_len is None and asked.max_blocks_per_seq > num_blocks:
        wanted = min(wanted, held)
    whole = -(-wanted // asked.block_size)
    if num_blocks < max(1, min(whole, asked.max_blocks_per_seq)):
        need = f"max_model_len ({wanted}) needs"
        if asked.max_blocks_per_seq < whole:
            chunk = f"max_num_batched_tokens ({asked.max_num_batched_tokens})"
            need = f"a sliding window of {asked.sliding_window} tokens and {chunk} need"
        raise ValueError(f"{need} more cache than the {held} tokens that num_blocks holds")
    return replace(asked, max_model_len=wanted, num_blocks=num_blocks)


def _cache_bytes(device: torch.device) -> int:
    """Bytes of memory for the cache, of those that are free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CPU_CACHE_LIMIT, free // 4)
