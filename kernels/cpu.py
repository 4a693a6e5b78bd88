"""The ops that gain from knowing they run on a CPU; what is not here the `cpu` backend takes from the reference.

Weights are packed once into oneDNN's blocked layout, which a product of few rows reads at several times the speed of a
plain matrix; q and k turn together where they are neighbours; a greedy draw is one pass over the logits. Results differ
from the reference by rounding only. Inference only: the packed product has no gradient. Attention is in
cpu_attention.py, filtered sampling in cpu_sampling.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu_sampling import draw

PACKED_DTYPES = (torch.float32, torch.bfloat16)

PACKED_ROWS = 16  # of x, for which the layout is made; made for one row, float32 would not be blocked at all


def pack(weight: Tensor) -> Tensor:
    """`[out_features, in_features]` in oneDNN's own layout; other dtypes stay as they are."""
    if weight.dtype not in PACKED_DTYPES:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


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
    """Pairs as complex numbers, turned by one product: see the reference."""
    turns = torch.complex(cos.index_select(0, positions), sin.index_select(0, positions)).unsqueeze(1)
    if not _are_neighbours(q, k):
        return _turn(q, turns, interleaved), _turn(k, turns, interleaved)
    num_tokens, num_heads, head_dim = q.shape
    both = q.as_strided((num_tokens, num_heads + k.shape[1], head_dim), q.stride())
    turned = _turn(both, turns, interleaved)
    return turned[:, :num_heads], turned[:, num_heads:]


def _are_neighbours(q: Tensor, k: Tensor) -> bool:
    """Whether k's heads follow q's in every token, as in a fused projection."""
    follows = k.storage_offset() == q.storage_offset() + q.shape[1] * q.stride(1)
    return follows and q.stride() == k.stride() and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


def _turn(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    """x `[num_tokens, heads, head_dim]`, turns complex64 `[num_tokens, 1, head_dim / 2]`."""
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
