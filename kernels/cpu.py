"""The ops that gain from knowing they run on a CPU; what is not here the `cpu` backend takes from the reference.

Weights are packed once into oneDNN's blocked layout, which a one-token step reads at several times the speed of a plain
matrix; attention goes through PyTorch's fused kernel, one call a sequence; nothing branches on a mask that is all true.
Results differ from the reference by rounding only. Inference only: the packed product has no gradient.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu_sampling import draw

PACKED_DTYPES = (torch.float32, torch.bfloat16)


def pack(weight: Tensor) -> Tensor:
    """`[out_features, in_features]` in oneDNN's own layout; other dtypes stay as they are."""
    if weight.dtype not in PACKED_DTYPES:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, 1)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, residual: Tensor | None = None
) -> Tensor:
    """`activation(x @ weight.T + bias) + residual`, the activation fused into the product; weight packed or plain."""
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', not {activation!r}")
    if weight.is_mkldnn:
        name, form = ("none", "") if activation is None else ("gelu", "tanh")
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
    else:
        y = F.linear(x, weight, bias)
        y = y if activation is None else F.gelu(y, approximate="tanh")
    return y if residual is None else y + residual


def lm_head_sample(hidden: Tensor, weight: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters."""
    return draw(linear(hidden, weight), temperature, seeds, positions)


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Pairs as complex numbers, turned by one product."""
    turns = torch.complex(cos[positions], sin[positions]).unsqueeze(1)  # [num_tokens, 1, head_dim / 2]
    return _turn(q, turns, interleaved), _turn(k, turns, interleaved)


def _turn(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    pairs = torch.complex(*x.float().chunk(2, dim=-1)) * turns
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing."""
    if slot_mapping.numel() and int(slot_mapping.min()) < 0:
        live = slot_mapping >= 0
        k, v, slot_mapping = k[live], v[live], slot_mapping[live]
    slots = slot_mapping.long()
    k_cache.flatten(0, 1).index_copy_(0, slots, k)
    v_cache.flatten(0, 1).index_copy_(0, slots, v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence."""
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for a, b in pairwise(cu_seqlens.tolist()):
        if a < b:
            o[a:b] = _attend(q[a:b], k[a:b], v[a:b], scale)
    return o


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context, causal from the bottom right."""
    bounds, lengths, block_size = cu_seqlens_q.tolist(), context_lens.tolist(), k_cache.shape[1]
    pieces = []
    for (a, b), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        seen = min(b - a, length)  # queries before the first key see nothing
        if seen < b - a:
            pieces.append(torch.zeros_like(q[: b - a - seen]))
        if seen:
            used = blocks[: -(-length // block_size)]
            k, v = (cache.index_select(0, used).flatten(0, 1)[:length] for cache in (k_cache, v_cache))
            pieces.append(_attend(q[b - seen : b], k, v, scale))
    if bounds[-1] < len(q):
        pieces.append(torch.zeros_like(q[bounds[-1] :]))
    return pieces[0] if len(pieces) == 1 else torch.cat([q[:0], *pieces])


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence, `[tokens, heads, head_dim]`, with at least as many keys as queries."""
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
    if num_queries == 1:  # a kv head's query heads are rows of one product
        rows = q.view(1, num_kv_heads, -1, head_dim)
        return F.scaled_dot_product_attention(rows, k, v, scale=scale).view(1, num_heads, head_dim)
    group = num_heads // num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask = None
    if num_queries < num_keys:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    rows = q.transpose(0, 1).unsqueeze(0)
    o = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return o.squeeze(0).transpose(0, 1)
