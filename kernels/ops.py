"""Ops: one backend as a value. A backend is the reference with some of its functions replaced.

`REFERENCE` runs anywhere; `load("triton")` replaces what has a kernel. Two backends live side by side in one process,
and an ablation is one line: `replace(load("triton"), sample=REFERENCE.sample)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import torch

from octavo.kernels import reference
from octavo.kernels.weights import FORMATS

BACKENDS = ("reference", "cpu", "triton")


@dataclass(frozen=True)
class Ops:
    """One backend: its ops are functions with the signatures of their namesakes in `reference.py`."""

    name: str
    layer_norm: Callable[..., Any]
    rms_norm: Callable[..., Any]
    add_layer_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    rope: Callable[..., Any]
    bias_gelu: Callable[..., Any]
    silu_mul: Callable[..., Any]
    pack: Callable[..., Any]
    linear: Callable[..., Any]
    write_kv: Callable[..., None]
    causal_attention: Callable[..., Any]
    paged_attention: Callable[..., Any]
    apply_penalties: Callable[..., None]
    sample: Callable[..., Any]
    lm_head_sample: Callable[..., Any]
    top_logprobs: Callable[..., Any]
    formats: frozenset[str] = frozenset(FORMATS)  # of weights that its products take, besides dense ones
    record: Callable[..., Any] | None = None  # no op: from a function to one that repeats it without its Python


OP_NAMES = tuple(field.name for field in fields(Ops) if field.name not in ("name", "formats", "record"))

REFERENCE = Ops(name="reference", **{name: getattr(reference, name) for name in OP_NAMES})


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


WAITING_OPS = ("write_kv", "paged_attention", "sample", "lm_head_sample")  # the reference's look at tensors' values


def can_be_captured(ops: Ops) -> bool:
    """Whether a decode step of this backend never waits for the device, as a CUDA graph demands."""
    return not any(getattr(ops, name) is getattr(REFERENCE, name) for name in WAITING_OPS)


def recorder(ops: Ops) -> Callable[..., Any] | None:
    """What records a forward pass of this backend, to be repeated on the same buffers; None where nothing can."""
    waits = any(getattr(ops, name) is getattr(REFERENCE, name) for name in ("write_kv", "paged_attention"))
    return None if waits else ops.record


def _cpu() -> Ops:
    """The reference with what gains from knowing that it runs on a CPU."""
    if find_spec("numba") is None:
        raise RuntimeError("backend 'cpu' needs the package numba, which is not installed: use backend 'reference'")
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("backend 'cpu' needs a PyTorch built with oneDNN: use backend 'reference'")

    from octavo.kernels.cpu.attention import causal_attention, paged_attention
    from octavo.kernels.cpu.graph import record
    from octavo.kernels.cpu.linear import linear, pack
    from octavo.kernels.cpu.lm_head_sample import lm_head_sample
    from octavo.kernels.cpu.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm, rope, silu_mul, write_kv
    from octavo.kernels.cpu.sample import sample

    return replace(
        REFERENCE,
        name="cpu",
        layer_norm=layer_norm,
        rms_norm=rms_norm,
        add_layer_norm=add_layer_norm,
        add_rms_norm=add_rms_norm,
        rope=rope,
        silu_mul=silu_mul,
        pack=pack,
        linear=linear,
        write_kv=write_kv,
        causal_attention=causal_attention,
        paged_attention=paged_attention,
        sample=sample,
        lm_head_sample=lm_head_sample,
        record=record,
    )


def _triton() -> Ops:
    """The reference with every op replaced that has a Triton kernel; its files are imported here and nowhere else."""
    if find_spec("triton") is None:
        raise RuntimeError("backend 'triton' needs the package triton, which is not installed")
    from triton import knobs

    if not torch.cuda.is_available() and not knobs.runtime.interpret:
        raise RuntimeError("backend 'triton' needs a CUDA device, or TRITON_INTERPRET=1 to run in Triton's interpreter")

    from octavo.kernels.triton.activation import bias_gelu, silu_mul
    from octavo.kernels.triton.attention import causal_attention
    from octavo.kernels.triton.kv_cache import write_kv
    from octavo.kernels.triton.linear import linear
    from octavo.kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
    from octavo.kernels.triton.paged_attention import paged_attention
    from octavo.kernels.triton.rope import rope
    from octavo.kernels.triton.sampling.lm_head_sample import lm_head_sample
    from octavo.kernels.triton.sampling.penalties import apply_penalties
    from octavo.kernels.triton.sampling.sample import sample
    from octavo.kernels.triton.sampling.top_logprobs import top_logprobs

    return replace(
        REFERENCE,
        name="triton",
        formats=frozenset(),
        layer_norm=layer_norm,
        rms_norm=rms_norm,
        add_layer_norm=add_layer_norm,
        add_rms_norm=add_rms_norm,
        rope=rope,
        bias_gelu=bias_gelu,
        silu_mul=silu_mul,
        linear=linear,
        write_kv=write_kv,
        causal_attention=causal_attention,
        paged_attention=paged_attention,
        apply_penalties=apply_penalties,
        sample=sample,
        lm_head_sample=lm_head_sample,
        top_logprobs=top_logprobs,
    )
