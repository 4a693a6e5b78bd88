"""Attention over a step's own tokens on a CPU, by PyTorch's fused kernel, sequence by sequence."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence: see the reference."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    k, v = (x.transpose(0, 1).unsqueeze(0) for x in (k, v))
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = attend(q[a:b], k[:, :, a:b], v[:, :, a:b], scale)
    return o


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence: q `[queries, num_heads, head_dim]`; k, v `[1, num_kv_heads, keys, head_dim]`, keys >= queries."""
    group, num_queries, num_keys = q.shape[1] // k.shape[1], len(q), k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    is_chunk = 1 < num_queries < num_keys
    mask = (
        torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
        if is_chunk
        else None
    )
    rows = q.transpose(0, 1).unsqueeze(0)
    is_causal = num_queries == num_keys
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return o.squeeze(0).transpose(0, 1)
