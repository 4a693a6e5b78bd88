"""Products on a CPU: weights packed once in panels of 16 outputs, read by kernels of our own (panels/).

The order in which an output sums its inputs is the same for every number of rows, tiles and threads. Results differ
from the reference by rounding only; with the blocks of a GGUF file x is rounded, too, to whole numbers
(`weights.round_activations`). Inference only: the packed product has no gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.activations import ACTIVATIONS, check_activation
from octavo.kernels.cpu.panels.formats import LAYOUTS
from octavo.kernels.cpu.panels.pack import DENSE, Panels, empty_panels, pack_blocks, pack_dense
from octavo.kernels.cpu.panels.product import product, stacked_product
from octavo.kernels.cpu.panels.tile import WIDTH
from octavo.kernels.cpu.vector_ir import LANES
from octavo.kernels.weights import BlockWeight, Stacked, UnreadWeight, Weight, dequantise, quantise

PART = 2**21  # values of a weight that are read and packed at once


def pack(weight: Weight, format: str | None = None) -> Weight:
    """A weight `[out_features, in_features]` in panels: dense in its own dtype, or in the format of that name.

    Blocks of a GGUF file keep their values; those that no product reads are widened to float32. A weight that still
    lies in a file is read part by part, and never held twice.
    """
    if isinstance(weight, UnreadWeight):
        return _pack_parts(weight)
    if isinstance(weight, Tensor) and format is not None:
        weight = quantise(weight, format)
    if isinstance(weight, BlockWeight) and weight.format in LAYOUTS:
        return pack_blocks(weight)
    dense = dequantise(weight)
    return pack_dense(dense.detach()) if dense.dtype in DENSE else dense


def _pack_parts(weight: UnreadWeight) -> Weight:
    """Parts are whole tiles, so that each fills its own panels."""
    step = max(WIDTH, PART // weight.in_features // WIDTH * WIDTH)
    whole: Panels | None = None
    for start in range(0, weight.out_features, step):
        part = pack(weight.rows(start, min(start + step, weight.out_features)))
        assert isinstance(part, Panels), "what a file is read as fits panels"
        whole = whole or empty_panels(part, weight.out_features)
        whole.data[start // LANES :][: len(part.data)] = part.data
    return whole if whole is not None else pack(weight.read())


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`: see the reference."""
    check_activation(activation)
    if isinstance(weight, Stacked) and all(isinstance(part, Panels) for part in weight.parts):
        return stacked_product(x, weight, bias, activation)
    if not isinstance(weight, Panels):
        return ACTIVATIONS[activation](F.linear(x, dequantise(weight, x.dtype), bias))
    return product(x, weight, bias, activation)
