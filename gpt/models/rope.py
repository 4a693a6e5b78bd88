"""Rotary positions: their tables, how long contexts stretch them, and what model files say of that.

Su et al., RoFormer, https://arxiv.org/abs/2104.09864; Llama 3's stretch: https://arxiv.org/abs/2407.21783; YaRN:
https://arxiv.org/abs/2309.00071; LongRoPE: https://arxiv.org/abs/2402.13753.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RopeTables = tuple[Tensor, Tensor]  # cos, sin: [positions, rotary_dim / 2] float32


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of a longer context differ from the plain ones; `kind` is a key of `STRETCHES`."""

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()  # one a frequency, as GGUF files store llama3's stretch; longrope's long ones
    short_factors: tuple[float, ...] = ()  # longrope's, for lengths up to the original context
    attention_factor: float = 1.0  # of cos and sin
    beta_fast: float = 32.0  # yarn keeps frequencies that turn more often than this in the original context
    beta_slow: float = 1.0  # and stretches those that turn less often than this
    truncate: bool = True  # yarn's bounds are whole frequencies

    @property
    def follows_length(self) -> bool:
        """Whether the tables depend on the longest sequence there will be."""
        return self.kind in ("dynamic", "longrope")


def rope_tables(
    rotary_dim: int, context_size: int, theta: float, scaling: RopeScaling | None, length: int | None = None
) -> RopeTables:
    """cos and sin of every position's angles, on the CPU: the same bits for every device.

    length is the most tokens that a sequence will have, context_size where it is not known: one table serves all of
    them, so that a token's value never depends on how long its sequence becomes. So dynamic scaling changes nothing
    unless length is beyond the context; then the table is what transformers has for a sequence of that length.
    """
    length = context_size if length is None else length
    if scaling is None:
        frequencies, factor = plain_frequencies(rotary_dim, theta), 1.0
    else:
        frequencies = STRETCHES[scaling.kind](scaling, rotary_dim, theta, length)
        factor = scaling.attention_factor
    angles = torch.outer(torch.arange(max(context_size, length), dtype=torch.float32, device="cpu"), frequencies)
    return (angles.cos(), angles.sin()) if factor == 1 else (angles.cos() * factor, angles.sin() * factor)


def plain_frequencies(rotary_dim: int, theta: float) -> Tensor:
    """Radians that a pair turns from one position to the next, `[rotary_dim / 2]` float32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    return 1.0 / theta**exponents


def _linear(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    return plain_frequencies(rotary_dim, theta) / s.factor


def _factors(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    return plain_frequencies(rotary_dim, theta) / torch.tensor(s.factors, dtype=torch.float32, device="cpu")


def _llama3(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    """Slow frequencies divided by the factor, fast ones kept, a ramp between."""
    frequencies = plain_frequencies(rotary_dim, theta)
    turns = s.original_context * frequencies / (2 * math.pi)  # within the original context
    ramp = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return torch.lerp(frequencies / s.factor, frequencies, ramp.clamp(0, 1))


def _yarn(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    """As llama3, but the ramp runs over the index of the frequency."""
    frequencies = plain_frequencies(rotary_dim, theta)

    def index(turns: float) -> float:
        return rotary_dim * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(s.beta_fast), index(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    steps = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
    ramp = ((steps - low) / (high - low or 0.001)).clamp(0, 1)
    return frequencies / s.factor * ramp + frequencies * (1 - ramp)


def _longrope(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    """Each frequency divided by a factor of its own, of the list for the longest sequence."""
    factors = s.factors if length > s.original_context else s.short_factors
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * theta**exponents)


def _dynamic(s: RopeScaling, rotary_dim: int, theta: float, length: int) -> Tensor:
    """A larger base for lengths beyond the original context (NTK-aware scaling)."""
    ratio = max(length, s.original_context) / s.original_context
    base = theta * (s.factor * ratio - (s.factor - 1)) ** (rotary_dim / (rotary_dim - 2))
    return plain_frequencies(rotary_dim, base)


STRETCHES: dict[str, Callable[[RopeScaling, int, float, int], Tensor]] = {
    "linear": _linear, "factors": _factors, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
    "dynamic": _dynamic,
}  # fmt: skip


def interleave_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k, `[heads * head_dim, ...]`, from rotary pairs `(i, i + head_dim / 2)` to neighbours."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def deinterleave_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Undo `interleave_rows`."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()
