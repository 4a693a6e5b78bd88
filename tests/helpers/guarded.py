"""Memory for kernels under test: every new tensor is NaN, and stands between guards that nobody may touch."""

from typing import Any

import torch
from torch import Tensor

_empty = torch.empty  # itself, whatever stands in for it
GUARD = 4096  # values before and after each tensor


class GuardedMemory:
    """Stands in for `torch.empty` and `torch.empty_like` while a test runs."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        fill = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        buffer = torch.full((size.numel() + 2 * GUARD,), fill, dtype=dtype, device=device)
        self.buffers.append(buffer)
        return buffer[GUARD : GUARD + size.numel()].view(size)

    def empty_like(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)

    def intact(self) -> bool:
        """Whether all guards are as they were."""
        guards = [guard for buffer in self.buffers for guard in (buffer[:GUARD], buffer[-GUARD:])]
        return all(
            bool((guard != guard if guard.is_floating_point() else guard == torch.iinfo(guard.dtype).max).all())
            for guard in guards
        )


def far_apart(tensor: Tensor) -> Tensor:
    """The same rows 2^30 values apart: row 2 begins where int32 ends. What lies between is never touched."""
    step = 2**30
    room = _empty((len(tensor) - 1) * step + tensor[0].numel(), dtype=tensor.dtype, device=tensor.device)
    apart = room.as_strided(tensor.shape, (step, *tensor.stride()[1:]))
    return apart.copy_(tensor)
