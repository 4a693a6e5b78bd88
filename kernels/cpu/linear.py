"""Products on a CPU, and the draw from the last of them.

Weights are packed once into oneDNN's blocked layout, which a product of few rows reads at several times the speed of a
plain matrix; a greedy draw is one pass over the logits. Results differ from the reference by rounding only. Inference
only: the packed product has no gradient. The other ops of the backend: cpu_layer.py, cpu_attention.py, cpu_sampling.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu.sample import draw

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
