"""Products on a CPU, by the format of the weight.

Dense weights are packed once into oneDNN's blocked layout, which a product of few rows reads at several times the speed
of a plain matrix. Results differ from the reference by rounding only. Inference only: the packed product has no
gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu.linear_int8 import linear_int8
from octavo.kernels.reference import ACTIVATIONS, check_activation
from octavo.kernels.weights import Int8Weight, Weight, quantise

PACKED_DTYPES = (torch.float32, torch.bfloat16)

PACKED_ROWS = 16  # of x, for which the layout is made; made for one row, float32 would not be blocked at all


def pack(weight: Tensor, format: str | None = None) -> Weight:
    """A dense weight `[out_features, in_features]` in that format; without one, in oneDNN's layout where it has one."""
    if format is not None:
        return quantise(weight, format)
    if weight.dtype not in PACKED_DTYPES:
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`: see the reference."""
    return BY_FORMAT[type(weight)](x, weight, bias, check_activation(activation))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The activation is fused into the product where the weight is packed and oneDNN knows the activation."""
    if not weight.is_mkldnn:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))
    name, form = POINTWISE.get(activation, POINTWISE[None])
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
    return y if activation in POINTWISE else ACTIVATIONS[activation](y)


POINTWISE = {  # oneDNN's name of an activation, and its form
    None: ("none", ""),
    "gelu": ("gelu", "tanh"),
    "gelu_erf": ("gelu", "none"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


BY_FORMAT: dict[type, Callable[..., Tensor]] = {Tensor: _dense, torch.nn.Parameter: _dense, Int8Weight: linear_int8}
