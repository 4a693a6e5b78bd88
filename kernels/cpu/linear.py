"""Products on a CPU: weights packed once in panels of 16 outputs, read by kernels of our own (panels/).

The order in which an output sums its inputs is the same for every number of rows, tiles and threads. Results differ
from the reference by rounding only; with blocks of bytes or nibbles x is rounded to bytes too
(`weights.round_activations`). Inference only: the packed product has no gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.cpu.panels.formats import LAYOUTS
from octavo.kernels.cpu.panels.pack import DENSE, Panels, pack_blocks, pack_dense
from octavo.kernels.cpu.panels.product import product
from octavo.kernels.reference import ACTIVATIONS, check_activation
from octavo.kernels.weights import BlockWeight, Weight, dequantise, quantise


def pack(weight: Weight, format: str | None = None) -> Weight:
    """A weight `[out_features, in_features]` in panels: dense in its own dtype, or in the format of that name.

    Blocks of a GGUF file keep their values; those that no product reads are widened to float32.
    """
    if isinstance(weight, Tensor) and format is not None:
        weight = quantise(weight, format)
    if isinstance(weight, BlockWeight) and weight.format in LAYOUTS:
        return pack_blocks(weight)
    dense = dequantise(weight)
    return pack_dense(dense.detach()) if dense.dtype in DENSE else dense


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`: see the reference."""
    check_activation(activation)
    if not isinstance(weight, Panels):
        return ACTIVATIONS[activation](F.linear(x, dequantise(weight, x.dtype), bias))
    return product(x, weight, bias, activation)
