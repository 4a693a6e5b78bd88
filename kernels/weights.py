"""Weight formats. The type of a weight says how its values are stored; `dequantise` says what they stand for.

A weight is a dense tensor `[out_features, in_features]`, blocks as a GGUF file holds them, or what a backend packs
either of them into. Every op that takes a weight takes each of them; a model may mix them tensor by tensor. To add a
format that files hold: its name in `BLOCK_FORMATS`, and in each backend that has a kernel for it the kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

ROWS_AT_ONCE = 4096  # of a weight, while it is converted
ACTIVATION_BLOCK = 32  # values of x that share a scale where a format's products round x to whole numbers


@runtime_checkable
class PackedWeight(Protocol):
    """A weight of another type than a tensor."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain tensor `[out_features, in_features]` that it stands for, float32 where dtype is None."""
        ...


class BlockFormat(NamedTuple):
    """How a GGUF file holds a row of a weight: so many values in so many bytes, one block after another."""

    values: int
    bytes: int
    from_dense: bool  # whether a dense weight can be brought into it


# https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
BLOCK_FORMATS = {
    "q8_0": BlockFormat(32, 34, True),
    "q4_0": BlockFormat(32, 18, True),
    "q4_1": BlockFormat(32, 20, True),
    "q5_0": BlockFormat(32, 22, False),
    "q5_1": BlockFormat(32, 24, False),
    "q4_k": BlockFormat(256, 144, False),
    "q5_k": BlockFormat(256, 176, False),
    "q6_k": BlockFormat(256, 210, False),
}

FORMATS = tuple(name for name, format in BLOCK_FORMATS.items() if format.from_dense)  # that a dense weight can take


class BlockWeight(NamedTuple):
    """A weight `[out_features, in_features]` in the blocks of a GGUF file."""

    blocks: Tensor  # uint8 [out_features, bytes of a row]
    format: str  # a key of BLOCK_FORMATS

    @property
    def out_features(self) -> int:
        return len(self.blocks)

    @property
    def in_features(self) -> int:
        values, size, _ = BLOCK_FORMATS[self.format]
        return self.blocks.shape[1] // size * values

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain tensor that it stands for: see `PackedWeight`."""
        gguf, kind = _gguf(self.format)
        dense = torch.empty(self.out_features, self.in_features, dtype=dtype or torch.float32, device="cpu")
        for rows, target in zip(self.blocks.split(ROWS_AT_ONCE), dense.split(ROWS_AT_ONCE), strict=True):
            target.copy_(torch.from_numpy(gguf.dequantize(rows.numpy(), kind)))
        return dense


class Stacked(NamedTuple):
    """Weights of the same inputs whose outputs follow each other, each in a format of its own."""

    parts: tuple["Weight", ...]

    @property
    def out_features(self) -> int:
        return sum(out_features(part) for part in self.parts)

    @property
    def in_features(self) -> int:
        first = self.parts[0]
        return first.shape[1] if isinstance(first, Tensor) else first.in_features

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain tensor that it stands for: see `PackedWeight`."""
        return torch.cat([dequantise(part, dtype or torch.float32) for part in self.parts])


class UnreadWeight(NamedTuple):
    """A weight that still lies in a file, in one format: `pack` reads it, a few rows at a time where it can."""

    out_features: int
    in_features: int
    rows: Callable[[int, int], Tensor | BlockWeight]  # from the first to before the second

    def read(self) -> Tensor | BlockWeight:
        """All of it, in memory of its own."""
        weight = self.rows(0, self.out_features)
        return weight.clone() if isinstance(weight, Tensor) else weight._replace(blocks=weight.blocks.clone())

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain tensor that it stands for: see `PackedWeight`."""
        return dequantise(self.read(), dtype or torch.float32)


Weight: TypeAlias = Tensor | PackedWeight


def out_features(weight: Weight) -> int:
    return len(weight) if isinstance(weight, Tensor) else weight.out_features


def parts_of(weight: Weight) -> tuple[Weight, ...]:
    return weight.parts if isinstance(weight, Stacked) else (weight,)


def format_of(weight: Weight) -> str:
    """The name of a weight's format, or of its dtype."""
    return str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else getattr(weight, "format", "own")


def size_of(weight: Weight) -> int:
    """How many values a weight has."""
    return weight.numel() if isinstance(weight, Tensor) else weight.out_features * weight.in_features


def dequantise(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The plain tensor `[out_features, in_features]` that a weight stands for, in `dtype` (a dense weight's own)."""
    if not isinstance(weight, Tensor):
        return weight.dequantise(dtype)
    return weight if dtype is None else weight.to(dtype)


def quantise(weight: Tensor, format: str) -> Weight:
    """A dense weight `[out_features, in_features]` in the format of that name; ValueError where there is none.

    A weight whose rows are not whole blocks stays as it is, as in llama.cpp.
    """
    if format not in FORMATS:
        raise ValueError(f"weights must be auto or one of {', '.join(FORMATS)}, not {format!r}")
    if weight.shape[1] % BLOCK_FORMATS[format].values:
        return weight
    gguf, kind = _gguf(format)
    rows = [gguf.quantize(part.float().numpy(), kind) for part in weight.detach().cpu().split(ROWS_AT_ONCE)]
    return BlockWeight(torch.cat([torch.from_numpy(each) for each in rows]), format)


def round_activations(x: Tensor) -> Tensor:
    """x as products with blocks of a GGUF file may see it: whole numbers, with one scale for each 32 values of a row.

    The largest value becomes 127 where x has 16 bits, and `127 * 128` where it is float32, which is exact enough to
    give the answers of float32. A number is rounded to nearest, ties to even. The result is float32.
    """
    blocks = x.float().unflatten(1, (-1, ACTIVATION_BLOCK))
    largest, levels = blocks.abs().amax(2, keepdim=True), activation_levels(x.dtype)
    quotient = torch.full_like(largest, levels) / largest  # `levels / largest` would multiply by a rounded reciprocal
    inverse = torch.where(largest > 0, quotient, 0.0)
    return ((blocks * inverse).round() * (largest * (1 / levels))).flatten(1)


def activation_levels(dtype: torch.dtype) -> int:
    """The whole number that the largest value of a block becomes."""
    return 127 * 128 if dtype is torch.float32 else 127


def _gguf(format: str) -> tuple[Any, Any]:
    """The package that defines the blocks, and its name of a format; imported late, since few need it."""
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    return quants, GGMLQuantizationType[format.upper()]
