"""Backends by name, and which of their steps may be captured."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from octavo.kernels.ops import REFERENCE, Ops

BACKENDS = ("reference", "cpu", "triton")


def load(name: str) -> Ops:
    """The backend of that name, one of `BACKENDS`; ValueError if unknown, RuntimeError if it cannot run here."""
    if name == "reference":
        return REFERENCE
    if name == "cpu":
        return _cpu()
    if name == "triton":
        return _triton()
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {name!r}")


def best_for(device_type: str) -> str:
    """The backend that "auto" means on a device of that type."""
    if device_type == "cuda":
        return "triton"
    return "cpu" if find_spec("numba") and torch.backends.mkldnn.is_available() else "reference"


def can_be_captured(ops: Ops) -> bool:
    """Whether a decode step of this backend never waits for the device, as a CUDA graph demands."""
    return not ops.syncs


def graph_capture(ops: Ops) -> Callable[..., Any] | None:
    """What captures a forward pass of this backend, to be replayed on the same buffers; None where nothing can."""
    return ops.capture if ops.syncs <= {"sample", "lm_head_sample"} else None


def _cpu() -> Ops:
    if find_spec("numba") is None:
        raise RuntimeError("backend 'cpu' needs the package numba, which is not installed: use backend 'reference'")
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("backend 'cpu' needs a PyTorch built with oneDNN: use backend 'reference'")

    from octavo.kernels.cpu.backend import CPU

    return CPU


def _triton() -> Ops:
    if find_spec("triton") is None:
        raise RuntimeError("backend 'triton' needs the package triton, which is not installed")
    from triton import knobs

    if not torch.cuda.is_available() and not knobs.runtime.interpret:
        raise RuntimeError("backend 'triton' needs a CUDA device, or TRITON_INTERPRET=1 to run in Triton's interpreter")

    from octavo.kernels.triton.backend import TRITON

    return TRITON
