"""Backends by name, those of other packages included, and which of their steps may be captured."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from octavo.kernels.ops import REFERENCE, Ops

BACKENDS = ("reference", "cpu", "triton")


def load(name: str) -> Ops:
    """The backend of that name: one of `BACKENDS`, or the `Ops` of any module as "package.module:NAME".

    The module is imported, found as Python finds modules or in the current folder. ValueError if there is no such
    backend, module or value, RuntimeError if it cannot run here.
    """
    if name == "reference":
        return REFERENCE
    if name == "cpu":
        return _cpu()
    if name == "triton":
        return _triton()
    if ":" in name:
        return _of_module(name)
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or package.module:NAME, not {name!r}")


def best_for(device_type: str) -> str:
    """The backend that "auto" means on a device of that type."""
    if device_type == "cuda":
        return "triton"
    return "cpu" if find_spec("numba") else "reference"


def can_be_captured(ops: Ops) -> bool:
    """Whether a decode step of this backend never waits for the device, as a CUDA graph demands."""
    return not ops.syncs


def graph_capture(ops: Ops) -> Callable[..., Any] | None:
    """What captures a forward pass of this backend, to be replayed on the same buffers; None where nothing can."""
    return ops.capture if ops.syncs <= {"sample", "lm_head_sample"} else None


def _of_module(name: str) -> Ops:
    path, _, variable = name.partition(":")
    if not (variable.isidentifier() and all(part.isidentifier() for part in path.split("."))):
        raise ValueError(f"backend must be package.module:NAME, not {name!r}")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # the last place to look: no file that lies there hides an installed module
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name and f"{path}.".startswith(f"{error.name}."):
            raise ValueError(f"backend {name!r}: no module {error.name!r} on sys.path or in {folder}") from None
        raise ValueError(f"backend {name!r}: {path} needs the module {error.name!r}, which is not there") from error
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"backend {name!r}: importing {path} raised {type(error).__name__}: {said}") from error
    if not hasattr(module, variable):
        there = [known for known, value in vars(module).items() if isinstance(value, Ops)]
        raise ValueError(f"backend {name!r}: {path} has no {variable}; its backends: {', '.join(there) or 'none'}")
    if not isinstance(found := getattr(module, variable), Ops):
        raise ValueError(f"backend {name!r} must be an octavo.kernels.ops.Ops, not of type {type(found).__name__}")
    return found


def _cpu() -> Ops:
    if find_spec("numba") is None:
        raise RuntimeError("backend 'cpu' needs the package numba, which is not installed: use backend 'reference'")

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
