"""The LM head and the draw on a CPU: a greedy draw is one pass over the logits."""

from torch import Tensor

from octavo.kernels.cpu.linear import linear
from octavo.kernels.cpu.sample import draw
from octavo.kernels.weights import Weight


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters: see the reference."""
    return draw(linear(hidden, weight), temperature, seeds, positions)
