"""Ops: one backend as a value. A backend is the reference with some of its functions replaced.

`REFERENCE` runs anywhere; `backends.load` finds the others. Two backends live side by side in one process, and an
ablation is one line: `replace(backends.load("triton"), sample=REFERENCE.sample)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.kernels import reference, sampling_math
from octavo.kernels.weights import BLOCK_FORMATS, Weight

Pair = tuple[Tensor, Tensor]


class Rope(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, /
    ) -> Pair: ...


class LayerNorm(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, /) -> Tensor: ...


class CausalAttention(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float,
        window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None, /,
    ) -> Tensor: ...  # fmt: skip


class PagedAttention(Protocol):
    def __call__(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_lens: Tensor,
        cu_seqlens_q: Tensor, max_seqlen_q: int, scale: float,
        window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None, /,
    ) -> Tensor: ...  # fmt: skip


class Pack(Protocol):
    def __call__(self, weight: Weight, format: str | None = None, /) -> Weight: ...


class Embed(Protocol):
    def __call__(self, token_ids: Tensor, weight: Weight, dtype: torch.dtype, /) -> Tensor: ...


class Linear(Protocol):
    def __call__(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None, /
    ) -> Tensor: ...


class Sample(Protocol):
    def __call__(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor,
        positions: Tensor, allowed: Tensor | None = None, /,
    ) -> Pair: ...  # fmt: skip


@dataclass(frozen=True)
class Ops:
    """One backend: each op is a function with the signature of its namesake in `reference.py`."""

    name: str
    layer_norm: LayerNorm
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Pair]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Pair]
    rope: Rope
    silu_mul: Callable[[Tensor], Tensor]
    gelu_mul: Callable[[Tensor], Tensor]
    pack: Pack
    embed: Embed
    linear: Linear
    write_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    causal_attention: CausalAttention
    paged_attention: PagedAttention
    apply_penalties: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    sample: Sample
    lm_head_sample: Callable[[Tensor, Weight, Tensor, Tensor, Tensor], Tensor]
    top_logprobs: Callable[[Tensor, int], Pair]
    formats: frozenset[str] = frozenset(BLOCK_FORMATS)  # of weights that the products take, besides dense ones
    keeps_blocks: bool = False  # whether weights stay in a file's blocks where nobody asks for another format
    products: Callable[[Sequence[str], torch.dtype], str] | None = None  # of formats with x of a dtype, in a few words
    compile: Callable[[torch.dtype, str | None], object] | None = None  # ahead of the first step, while a model loads
    capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None  # of a function: its CPU graph
    capturable: frozenset[Callable[..., Any]] = frozenset()  # functions that `with_syncs` has declared free of syncs

    @property
    def syncs(self) -> frozenset[str]:
        """The ops that may read tensor values on the host during a decode step, which no graph can capture.

        An op that was put in by `replace` alone is one of them: nobody has declared what it does.
        """
        return frozenset(name for name in OP_NAMES if getattr(self, name) not in self.capturable)

    def with_syncs(self, *names: str) -> "Ops":
        """Declare that of this backend's ops only these read tensor values on the host during a decode step."""
        functions = {name: getattr(self, name) for name in OP_NAMES}
        free = {function for name, function in functions.items() if name not in names}
        return replace(self, capturable=self.capturable - set(functions.values()) | free)


NO_OPS = "name", "formats", "keeps_blocks", "products", "compile", "capture", "capturable"
OP_NAMES = tuple(field.name for field in fields(Ops) if field.name not in NO_OPS)

_functions: dict[str, Any] = {name: getattr(reference, name) for name in OP_NAMES}
REFERENCE = Ops(name="reference", **_functions).with_syncs("write_kv", "paged_attention", "sample", "lm_head_sample")

# What the filters of `sample` look at, keep, and how much of the mass that is: for callers who show a draw.
scaled_gap, keep_mask, kept_mass = sampling_math.scaled_gap, reference.keep_mask, sampling_math.kept_mass
allowed_bits = sampling_math.allowed_bits  # what a mask of `sample` says of each id
