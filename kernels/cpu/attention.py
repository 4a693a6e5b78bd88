"""Attention over a step's own tokens on a CPU, sequence by sequence.

PyTorch's fused kernel where scores go into the softmax as they are; it has no soft cap and no sinks: those are computed
as the reference computes them, in float32. With a window, and there, queries are cut in tiles, each beside the keys
that it may see, so that memory stays bounded and no key before the window is read.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import reference

QUERIES = 128  # of a tile


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = attend(q[a:b], k[a:b], v[a:b], scale, window, softcap, sinks)
    return o


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float, sinks: Tensor | None) -> Tensor:
    """One sequence: q `[queries, num_heads, head_dim]`; k, v `[keys, num_kv_heads, head_dim]`, keys >= queries."""
    plain = softcap > 0 or sinks is not None
    if not plain and (window == 0 or window >= len(k)):
        return _fused(q, k, v, scale, 0)
    o, before = torch.empty_like(q, memory_format=torch.contiguous_format), len(k) - len(q)
    for first in range(0, len(q), QUERIES):
        last = min(first + QUERIES, len(q))
        keys = slice(max(0, before + first + 1 - window) if window else 0, before + last)
        if plain:
            rows = q[first:last].float(), k[keys].float(), v[keys].float()
            o[first:last] = reference.attend(*rows, scale, window, softcap, sinks)
        else:
            o[first:last] = _fused(q[first:last], k[keys], v[keys], scale, window)
    return o


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    group, num_queries, num_keys = q.shape[1] // k.shape[1], len(q), len(k)
    rows, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask, is_causal = None, num_queries == num_keys and not window
    if window or 1 < num_queries < num_keys:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
        mask = mask.triu(num_keys - num_queries - window + 1) if window else mask
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return o.squeeze(0).transpose(0, 1)
