"""Names of dtypes and devices, however callers say them: PyTorch's objects, vLLM's and transformers' words."""

from typing import Any

import torch

from octavo.gpt.quoting import quoted

CUDA_GRAPHS = "startup", "lazy", "off"
ALIASES = {"half": "float16", "float": "float32"}


def dtype_name(dtype: Any) -> str:
    """The name of a dtype; ValueError for what is none, names themselves are judged where they are used."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str):
        raise ValueError(f"dtype must be a name or a torch.dtype, not {quoted(dtype)}")
    return ALIASES.get(name, name)


def graphs_name(cuda_graphs: Any, enforce_eager: bool) -> str:
    """When decode steps are captured; ValueError for what is none of CUDA_GRAPHS."""
    if cuda_graphs not in CUDA_GRAPHS:
        raise ValueError(f"cuda_graphs must be one of {', '.join(CUDA_GRAPHS)}, not {quoted(cuda_graphs)}")
    return "off" if enforce_eager else cuda_graphs


def device_name(device: Any) -> str:
    """The name of a device without the number of the one in use; ValueError for another's number."""
    name = str(device) if isinstance(device, torch.device) else device
    if not isinstance(name, str):
        raise ValueError(f"device must be a name or a torch.device, not {quoted(device)}")
    kind, _, index = name.partition(":")
    if not index:
        return name
    current = torch.cuda.current_device() if kind == "cuda" and torch.cuda.is_available() else 0
    if not index.isdecimal() or int(index) != current:
        raise ValueError(f"device {quoted(name)} is not the one in use, {kind}:{current}: set CUDA_VISIBLE_DEVICES")
    return kind
