"""Ops: one backend as a value. A backend is the reference with some of its functions replaced.

`REFERENCE` runs anywhere; `backends.load` finds the others. Two backends live side by side in one process, and an
ablation is one line: `replace(backends.load("triton"), sample=REFERENCE.sample)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.weights import FORMATS, Weight

Pair = tuple[Tensor, Tensor]


class Rope(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, /
    ) -> Pair: ...


class Pack(Protocol):
    def __call__(self, weight: Tensor, format: str | None = None, /) -> Weight: ...


class Linear(Protocol):
    def __call__(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class Ops:
    """One backend: each op is a function with the signature of its namesake in `reference.py`."""

    name: str
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], Pair]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Pair]
    rope: Rope
    silu_mul: Callable[[Tensor], Tensor]
    pack: Pack
    linear: Linear
    write_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    causal_attention: Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    paged_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    apply_penalties: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    sample: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Pair]
    lm_head_sample: Callable[[Tensor, Weight, Tensor, Tensor, Tensor], Tensor]
    top_logprobs: Callable[[Tensor, int], Pair]
    formats: frozenset[str] = frozenset(FORMATS)  # of weights that the products take, besides dense ones
    capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None  # of a function: its CPU graph


OP_NAMES = tuple(field.name for field in fields(Ops) if field.name not in ("name", "formats", "capture"))

_functions: dict[str, Any] = {name: getattr(reference, name) for name in OP_NAMES}
REFERENCE = Ops(name="reference", **_functions)

# Ops whose reference implementation reads tensor values on the host, which a captured step cannot.
SYNCING_OPS = ("write_kv", "paged_attention", "sample", "lm_head_sample")


def syncs(ops: Ops) -> frozenset[str]:
    """Name the ops of a backend that are the reference's and read tensor values on the host."""
    return frozenset(name for name in SYNCING_OPS if getattr(ops, name) is getattr(REFERENCE, name))
