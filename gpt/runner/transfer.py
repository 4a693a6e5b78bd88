"""Transfers between host and device that do not wait for what the device is computing."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy numbers to the device: from pinned memory on CUDA, since a copy from pageable memory waits."""
    return torch.tensor(values, dtype=dtype, device="cpu", pin_memory=device.type == "cuda").to(
        device, non_blocking=True
    )


def array_to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array that nobody writes to any more, as `to_device` does."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to the host, which may be read once the device has come that far."""
    return tensor.to("cpu", non_blocking=True)
