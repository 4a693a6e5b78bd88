"""Arithmetic of sampling that gives the same bits everywhere, for the backends that run on PyTorch.

Logarithm and exponential are sums and products of float32 in a fixed order, weights are integers, random words are
Philox's. Neither the machine nor the order of the vocabulary changes a result.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Words = TypeVar("Words", Tensor, np.ndarray)

# Top-p sums weights as integers, in units of 2^-44 of the largest: their order then cannot change the sum.
TOP_P_UNIT = 2.0**44


def gap_below(logits: Tensor) -> Tensor:
    """`logit - max` of each row; 0 at the maximum, even at +inf."""
    peak = logits.amax(-1, keepdim=True)
    return torch.where(logits == peak, 0.0, logits - peak)


def scaled_gap(logits: Tensor, temperature: Tensor) -> Tensor:
    """`(logit - max) / temperature` of each row, temperature `[..., 1]` above 0: what the filters look at."""
    return gap_below(logits) * (1 / temperature).clamp(max=torch.finfo(torch.float32).max)


def kept_mass(scaled: Tensor, keep: Tensor) -> Tensor:
    """How much of each row's `softmax(scaled)` the ids of `keep` have, float64 `[num_rows]`: a quotient of integers."""
    weights = weights_q44(scaled)
    return torch.where(keep, weights, 0).sum(-1).double() / weights.sum(-1).double()


def log_softmax(logits: Tensor) -> Tensor:
    """log_softmax over the last dimension; where a row has +inf, its mass lies there."""
    gap = gap_below(logits)
    return gap - gap.exp().sum(-1, keepdim=True).log()


def gumbel(words: Tensor) -> Tensor:
    """The noise that random words, int64 in [0, 2^32), stand for."""
    uniform = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)
    exponential = -natural_log(1 - uniform, -uniform)
    return -natural_log(exponential)


def philox(counter: tuple[Words, ...], key: tuple[Words | int, Words | int]) -> tuple[Words, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four counter words and two key words, each int64 in [0, 2^32).

    Runs on tensors and on NumPy's arrays alike.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps past 2^63; the bits are right
        c0, c1, c2, c3 = (
            (b >> 32) & 0xFFFFFFFF ^ c1 ^ k0,
            b & 0xFFFFFFFF,
            (a >> 32) & 0xFFFFFFFF ^ c3 ^ k1,
            a & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


# Minimax fits, lowest power first: (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2), sqrt(2)] - 1, and
# (exp(r) - 1 - r) / r^2 on [-log(2) / 2, log(2) / 2].
LOG_FIT = (0.33333910, -0.25001338, 0.19963063, -0.16577585, 0.14914767, -0.14267486, 0.087004356)
EXP_FIT = (0.49999994, 0.16666521, 0.041668389, 0.0083687166, 0.0013814599)


def natural_log(x: Tensor, x_minus_1: Tensor | None = None) -> Tensor:
    """log of positive normal float32, to about an ulp, in float32 sums and products: the same bits everywhere.

    Given `x - 1` as it was before x was rounded, this is log1p of it.
    """
    bits = x.view(torch.int32) - 0x3F3504F3  # counted from sqrt(1/2), which centres the mantissa on 1
    exponent = bits >> 23
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1
    if x_minus_1 is not None:
        f = torch.where(exponent == 0, x_minus_1, f)
    square = f * f
    return exponent.float() * 0.69314718 + (f + (f * square * _polynomial(LOG_FIT, f) - 0.5 * square))


def weights_q44(scaled: Tensor) -> Tensor:
    """`exp(scaled)` for scaled <= 0 as int64 in units of 2^-44: exp to about an ulp, the same bits everywhere."""
    x = scaled.clamp(min=-64.0)  # below half a unit
    power = (x * 1.4426950 + 0.5).floor()
    r = x - power * 0.693359375 - power * -2.1219444e-4  # log(2) in two parts, the first product exact
    exp = r * r * _polynomial(EXP_FIT, r) + r + 1
    return ((exp.view(torch.int32) + (power.int() << 23)).view(torch.float32) * TOP_P_UNIT).long()


def _polynomial(fit: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, fit[-1])
    for coefficient in reversed(fit[:-1]):
        value = value * x + coefficient
    return value


def allowed_bits(allowed: Tensor, vocab_size: int) -> Tensor:
    """The bits, bool `[num_seqs, vocab_size]`, of the masks that `sample` takes."""
    shifts = torch.arange(32, dtype=torch.int32, device=allowed.device)
    return ((allowed.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)[:, :vocab_size]
