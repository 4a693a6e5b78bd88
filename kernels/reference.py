"""Every op in plain PyTorch: the specification.

Each function here states what an op means; a kernel is right when it agrees with the function of the same name and
signature. Written to be read, differentiable where training needs it, and correct in any float dtype: run in float64
it is the oracle of the tests, run in the tested dtype it sets their error budget (tests/helpers/numerics.py).

Shapes use the project's glossary (DESIGN.md): tokens of all sequences lie end to end, `[num_tokens, ...]`, and
`cu_seqlens` holds where each sequence begins. Padding is legal data: slot -1 stores nothing, context 0 yields zeros.
The sampling ops stand in reference_sampling.py.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.reference_sampling import apply_penalties as apply_penalties
from octavo.kernels.reference_sampling import lm_head_sample as lm_head_sample
from octavo.kernels.reference_sampling import sample as sample
from octavo.kernels.reference_sampling import top_logprobs as top_logprobs
from octavo.kernels.weights import Weight, dequantise, quantise


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; x `[num_tokens, dim]`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; x `[num_tokens, dim]`."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: returns `(layer_norm(x + residual), x + residual)`."""
    residual = x + residual
    return layer_norm(residual, weight, bias, eps), residual


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: returns `(rms_norm(x + residual), x + residual)`."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate pairs of each head by an angle that grows with the position (https://arxiv.org/abs/2104.09864).

    q `[num_tokens, num_heads, head_dim]`, k `[num_tokens, num_kv_heads, head_dim]`, positions `[num_tokens]` int32,
    cos and sin `[context_size, head_dim / 2]` float32. Pairs are `(i, i + head_dim / 2)`, or neighbours `(2i, 2i + 1)`
    when `interleaved`, as checkpoints of the llama.cpp kind store them. Returns new q and k.
    """
    index = positions.long()
    cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # [num_tokens, 1, head_dim / 2]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection, `[num_tokens, 2 * dim]` -> `[num_tokens, dim]` for any dim."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def pack(weight: Tensor, format: str | None = None) -> Weight:
    """What the products take, made once from a dense weight `[out_features, in_features]`: in the format of that name
    (weights.py), else as it is. A backend may choose its own layout of either."""
    return weight if format is None else quantise(weight, format)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`: x `[num_tokens, in_features]` -> `[num_tokens, out_features]`.

    weight `[out_features, in_features]` in any format, activation None or "gelu" (the tanh form).
    """
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', not {activation!r}")
    y = F.linear(x, dequantise(weight, x.dtype), bias)
    return y if activation is None else F.gelu(y, approximate="tanh")


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing.

    k, v `[num_tokens, num_kv_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`;
    slot_mapping `[num_tokens]`: block * block_size + offset.
    """
    live = slot_mapping >= 0
    slots = slot_mapping[live].long()
    block, offset = slots // k_cache.shape[1], slots % k_cache.shape[1]
    k_cache[block, offset] = k[live]
    v_cache[block, offset] = v[live]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence.

    q `[num_tokens, num_heads, head_dim]`, k and v `[num_tokens, num_kv_heads, head_dim]` with num_heads a multiple of
    num_kv_heads; cu_seqlens `[num_seqs + 1]` int32; max_seqlen bounds the longest sequence. Returns o shaped as q.
    """
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(bounds)]
    qs, ks, vs = (x[: bounds[-1]].split(lengths) for x in (q, k, v))
    if len(set(lengths)) == 1:  # as in training: one product for all
        o = _attend(torch.stack(qs), torch.stack(ks), torch.stack(vs), scale).flatten(0, 1)
    else:
        o = torch.cat([q[:0], *(_attend(*rows, scale) for rows in zip(qs, ks, vs, strict=True))])
    return torch.cat([o, torch.zeros_like(q[bounds[-1] :])])


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
    """Each sequence's newest tokens attend to its cached context, causal from the bottom right.

    q `[num_tokens, num_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`; block_table
    `[num_seqs, max_blocks]` int32, -1 unused; context_lens `[num_seqs]` int32 count the cached tokens, this step's
    included; query i of n sees the first `context_len - n + 1 + i` of them, and an empty view yields zeros.
    cu_seqlens_q `[num_seqs + 1]` int32; max_seqlen_q bounds the longest query. Returns o shaped as q.
    """
    bounds, lengths, block_size = cu_seqlens_q.tolist(), context_lens.tolist(), k_cache.shape[1]
    pieces = []
    for (a, b), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        used = blocks[: -(-length // block_size)].long()
        k, v = (cache[used].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        pieces.append(_attend(q[a:b], k, v, scale))
    return torch.cat([*pieces, torch.zeros_like(q[bounds[-1] :])])


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Sequences of one length, `[..., tokens, heads, head_dim]`; n queries belong to the last n of the keys.

    The mask, for 2 queries of 4 keys:

        1 1 1 0
        1 1 1 1
    """
    num_queries = q.shape[-3]
    num_keys, num_kv_heads = k.shape[-3:-1]
    if num_queries == 0 or num_keys == 0:
        return torch.zeros_like(q)
    # A kv head's query heads lie above one another: [..., num_kv_heads, group * num_queries, head_dim].
    rows = q.unflatten(-2, (num_kv_heads, -1)).movedim(-4, -2).flatten(-3, -2)
    scores = (rows @ k.movedim(-3, -1)).unflatten(-2, (-1, num_queries)) * scale
    if num_queries > 1:
        last = torch.arange(num_queries, device=q.device).unsqueeze(1) + (num_keys - num_queries)
        scores = scores.masked_fill(torch.arange(num_keys, device=q.device) > last, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    if num_queries > num_keys:
        weights = weights.nan_to_num(0.0)  # queries before the first key see nothing
    o = weights.flatten(-3, -2) @ v.movedim(-2, -3)  # [..., num_kv_heads, group * num_queries, head_dim]
    return o.unflatten(-2, (-1, num_queries)).movedim(-2, -4).flatten(-3, -2)
