"""Octavo's attention in transformers' models: `register()`, then `attn_implementation="octavo"` as they are loaded."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from octavo.kernels import backends
from octavo.kernels.ops import Ops

BLOCK_SIZE = 16


def register(name: str = "octavo", backend: str | Ops = "auto") -> None:
    """Let transformers' models name this attention; "auto" is triton where PyTorch sees a GPU, else cpu.

    Causal attention with padding, grouped heads, sliding windows, soft caps and sinks; without gradients, but on the
    reference backend. ValueError, when the model runs, for what it cannot do.
    """
    if isinstance(backend, str):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backend = backends.load(backends.best_for(device) if backend == "auto" else backend)
    AttentionInterface.register(name, partial(attention, backend))
    AttentionMaskInterface.register(name, flash_attention_mask)  # None, or which keys are no padding


def attention(
    ops: Ops,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query `[num_seqs, num_heads, num_queries, head_dim]`, key and value
    `[num_seqs, num_kv_heads, num_keys, head_dim]`, attention_mask `[num_seqs, num_keys]`, whose last keys are those of
    the queries. Returns `[num_seqs, num_queries, num_heads, head_dim]`, zeros where a query is padding.
    """
    num_queries, causal = query.shape[2], getattr(module, "is_causal", True) if is_causal is None else is_causal
    if num_queries > 1 and not causal:
        raise ValueError("octavo's attention is causal, this layer is not")
    if dropout:
        raise ValueError(f"octavo's attention has no dropout, the model asks for {dropout}")
    if query.requires_grad and torch.is_grad_enabled() and ops.name != "reference":
        raise ValueError("octavo's attention has no gradients: call the model under torch.no_grad()")
    if attention_mask is None and num_queries > 1 and position_ids is not None and _is_packed(position_ids):
        raise ValueError("octavo's attention takes no sequences packed into one: pad them")
    num_keys = key.shape[2] if attention_mask is None else attention_mask.shape[1]  # a static cache holds more
    q, k, v = query.transpose(1, 2), *(x[:, :, :num_keys].transpose(1, 2) for x in (key, value))
    known = torch.ones(k.shape[:2], dtype=torch.bool, device=q.device) if attention_mask is None else attention_mask > 0
    asked = known[:, num_keys - num_queries :] if num_queries > 1 else known.new_ones(len(q), 1)
    bounds = torch.nn.functional.pad(asked.sum(1).cumsum(0), (1, 0)).int()
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    kind: Any = sliding_window or 0, softcap or 0.0, None if s_aux is None else s_aux.float()
    if num_queries == num_keys:
        o = ops.causal_attention(q[asked], k[known], v[known], bounds, num_queries, scale, *kind)
    else:
        caches = _blocks(k, known), _blocks(v, known)
        table = torch.arange(len(caches[0]), dtype=torch.int32, device=q.device).view(len(q), -1)
        o = ops.paged_attention(q[asked], *caches, table, known.sum(1).int(), bounds, num_queries, scale, *kind)
    padded = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    padded[asked] = o
    return padded, None


def _blocks(x: Tensor, known: Tensor) -> Tensor:
    """The known ones of `[num_seqs, num_keys, heads, head_dim]` as blocks of a cache, each sequence's at its start."""
    num_blocks = -(-x.shape[1] // BLOCK_SIZE)
    slots = x.new_zeros(len(x), num_blocks * BLOCK_SIZE, *x.shape[2:])
    rows, _ = known.nonzero(as_tuple=True)
    slots[rows, (known.cumsum(1) - 1)[known]] = x[known]
    return slots.view(-1, BLOCK_SIZE, *x.shape[2:])


def _is_packed(position_ids: Tensor) -> bool:
    """Whether positions begin anew within a row."""
    return bool((position_ids.diff(dim=-1) < 0).any())
