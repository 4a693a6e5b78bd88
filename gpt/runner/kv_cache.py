"""PagedCache: the tensors that block numbers index, one key and one value cache a layer."""

import torch
from torch import Tensor

from octavo.gpt.models.config import ModelConfig


class PagedCache:
    """Keys and values of all layers, `[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]`."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.data]
        self._host: dict[int, Tensor] = {}

    def swap_out(self, seq_id: int, blocks: list[int]) -> None:
        """Copy these blocks to host memory under the sequence's number."""
        self._host[seq_id] = self.data[:, :, blocks].cpu()

    def swap_in(self, seq_id: int, blocks: list[int]) -> None:
        """Put the copy back, into blocks of any numbers."""
        self.data[:, :, blocks] = self._host.pop(seq_id).to(self.data.device)

    def discard(self, seq_id: int) -> None:
        """Drop the copy, if there is one."""
        self._host.pop(seq_id, None)


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, keys and values."""
    return config.num_layers * 2 * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize
