"""The ops that gain from knowing they run on a CPU; what is not here the `cpu` backend takes from the reference.

Weights are packed once into oneDNN's blocked layout, which a product of few rows reads at several times the speed of a
plain matrix; an RMSNorm of few rows is a LayerNorm of twice the width; q and k turn together where they are neighbours;
a greedy draw is one pass over the logits. A step at batch 1 is as much calls as arithmetic, so what the layers share is
made once (memo.py). Results differ from the reference by rounding only. Inference only: the packed product has no
gradient. Attention is in cpu_attention.py, filtered sampling in cpu_sampling.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu_sampling import draw
from octavo.kernels.memo import Memo, once

PACKED_DTYPES = (torch.float32, torch.bfloat16)

SIGNS = {dtype: torch.tensor([[1.0], [-1.0]], dtype=dtype) for dtype in PACKED_DTYPES}
FEW_ROWS = 16  # of x: up to here a norm costs its calls; longer prompts keep the rounding of the reference

PACKED_ROWS = 16  # of x, for which the layout is made; made for one row, float32 would not be blocked at all


def pack(weight: Tensor) -> Tensor:
    """`[out_features, in_features]` in oneDNN's own layout, `[dim]` of a norm twice; other dtypes stay as they are."""
    if weight.dtype not in PACKED_DTYPES:
        return weight
    if weight.ndim == 1:
        return weight.repeat(2, 1)
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A LayerNorm of x beside -x: the mean is 0, the variance the mean square, and two kernels do it, not seven."""
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    if len(x) > FEW_ROWS:
        return F.rms_norm(x, weight.shape[1:], weight[0], eps)
    return F.layer_norm(x.unsqueeze(1) * SIGNS[x.dtype], weight.shape, weight, None, eps)[:, 0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: see the reference."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual


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
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    memo: Memo | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs as complex numbers, turned by one product: see the reference."""
    turns = once(memo, "rope", lambda: torch.complex(cos[positions], sin[positions]).unsqueeze(1))
    if not _are_neighbours(q, k):
        return _turn(q, turns, interleaved), _turn(k, turns, interleaved)
    num_tokens, num_heads, head_dim = q.shape
    both = q.as_strided((num_tokens, num_heads + k.shape[1], head_dim), q.stride())
    q, k = _turn(both, turns, interleaved).split_with_sizes((num_heads, k.shape[1]), 1)
    return q, k


def _are_neighbours(q: Tensor, k: Tensor) -> bool:
    """Whether k's heads follow q's in every token, as in a fused projection."""
    follows = k.storage_offset() == q.storage_offset() + q.shape[1] * q.stride(1)
    return follows and q.stride() == k.stride() and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


def _turn(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    """x `[num_tokens, heads, head_dim]`, turns complex64 `[num_tokens, 1, head_dim / 2]`."""
    if interleaved:
        pairs = torch.view_as_complex(x.float().view(*x.shape[:2], -1, 2))
        return torch.view_as_real(pairs * turns).view(x.shape).to(x.dtype)
    pairs = torch.complex(*x.float().chunk(2, dim=-1)) * turns
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


def write_kv(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor, memo: Memo | None = None
) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing."""
    slots, live = once(memo, "slots", lambda: _slots(slot_mapping))
    if live is not None:
        k, v = k[live], v[live]
    k_cache.flatten(0, 1).index_copy_(0, slots, k)
    v_cache.flatten(0, 1).index_copy_(0, slots, v)


def _slots(slot_mapping: Tensor) -> tuple[Tensor, Tensor | None]:
    """The slots of the tokens that have one, and which tokens those are; None: all."""
    live = slot_mapping >= 0
    return (slot_mapping.long(), None) if bool(live.all()) else (slot_mapping[live].long(), live)
