"""How checkpoints store the quantised weight of one module, and what dense rows `[out_features, in_features]` it means.

Every layout is a small value whose methods are pure functions of the module's tensors, by their leaf names. Small
unsigned numbers lie side by side in int32 words, the first in the lowest bits. The products are exact in float32: an
integer of at most 8 bits times a scale of at most 16.

GPTQ: https://arxiv.org/abs/2210.17323, AWQ: https://arxiv.org/abs/2306.00978, compressed-tensors:
https://github.com/vllm-project/compressed-tensors, FP8: https://arxiv.org/abs/2412.19437 (blocks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]  # one module's, by leaf name
Shapes = Mapping[str, tuple[int, ...]]

WORDS = (torch.int32,)
INDICES = (torch.int32, torch.int64)
SCALES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e8m0fnu)
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)

AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of the eight columns in a word: even ones in the lower half


class Leaf(NamedTuple):
    """What a tensor of a module may be."""

    dtypes: tuple[torch.dtype, ...]
    is_optional: bool = False


class Layout(Protocol):
    """One way of storing weights. `marks` are the leaves that tell a module stored so."""

    @property
    def marks(self) -> tuple[str, ...]: ...

    @property
    def leaves(self) -> Mapping[str, Leaf]: ...

    def shapes(self, tensors: Tensors) -> Shapes:
        """The shapes that the leaves must have, and under "" the dense weight's."""
        ...

    def rows(self, tensors: Tensors, start: int, stop: int) -> Tensor:
        """Rows start to stop of the dense weight, float32 `[stop - start, in_features]`."""
        ...


@dataclass(frozen=True)
class GPTQ:
    """`q = qweight[i, o]` packed along the inputs; `scales[g, o] * (q - zero[g, o])` with input i in group g_idx[i]."""

    bits: int
    group_size: int  # 0: all inputs are one group
    zero_offset: int  # what is stored is the zero point less this, 1 in the format's first version

    marks: ClassVar = ("qweight",)
    leaves: ClassVar = {
        "qweight": Leaf(WORDS), "qzeros": Leaf(WORDS), "scales": Leaf(SCALES), "g_idx": Leaf(INDICES, True)
    }  # fmt: skip

    def shapes(self, tensors: Tensors) -> Shapes:
        per_word = 32 // self.bits
        num_words, out = tensors["qweight"].shape
        num_groups = _ceil(num_words * per_word, self.group_size or num_words * per_word)
        return {
            "": (out, num_words * per_word), "scales": (num_groups, out), "qzeros": (num_groups, _ceil(out, per_word)),
            "g_idx": (num_words * per_word,),
        }  # fmt: skip

    def rows(self, tensors: Tensors, start: int, stop: int) -> Tensor:
        shifts = range(0, 32, self.bits)
        numbers = unpack(tensors["qweight"][:, start:stop].T, shifts)
        zeros = _columns(tensors["qzeros"], shifts, start, stop).T + self.zero_offset
        scales = tensors["scales"][:, start:stop].T
        group = tensors["g_idx"] if "g_idx" in tensors else _groups(numbers.shape[1], self.group_size)
        return _affine(numbers, scales, zeros, group)


@dataclass(frozen=True)
class AWQ:
    """`scales[g, o] * (q[i, o] - zero[g, o])`, both packed along the outputs, even columns before odd ones."""

    group_size: int

    marks: ClassVar = ("qweight",)
    leaves: ClassVar = {"qweight": Leaf(WORDS), "qzeros": Leaf(WORDS), "scales": Leaf(SCALES)}

    def shapes(self, tensors: Tensors) -> Shapes:
        in_features, num_words = tensors["qweight"].shape
        num_groups = _ceil(in_features, self.group_size or in_features)
        return {
            "": (8 * num_words, in_features), "scales": (num_groups, 8 * num_words), "qzeros": (num_groups, num_words)
        }  # fmt: skip

    def rows(self, tensors: Tensors, start: int, stop: int) -> Tensor:
        numbers = _columns(tensors["qweight"], AWQ_SHIFTS, start, stop).T
        zeros = _columns(tensors["qzeros"], AWQ_SHIFTS, start, stop).T
        group = _groups(numbers.shape[1], self.group_size)
        return _affine(numbers, tensors["scales"][:, start:stop].T, zeros, group)


@dataclass(frozen=True)
class Packed:
    """compressed-tensors' integers, moved to be unsigned and packed along the inputs; zero points along the outputs."""

    bits: tuple[int, ...]  # the widths that the configuration names; the tensors say which one a module has

    marks: ClassVar = ("weight_packed",)
    leaves: ClassVar = {
        "weight_packed": Leaf(WORDS), "weight_scale": Leaf(SCALES), "weight_shape": Leaf(INDICES),
        "weight_zero_point": Leaf(WORDS, True), "weight_g_idx": Leaf(INDICES, True),
    }  # fmt: skip

    def shapes(self, tensors: Tensors) -> Shapes:
        out, in_features, bits = self._sizes(tensors)
        num_groups = tensors["weight_scale"].shape[-1]
        return {
            "": (out, in_features), "weight_packed": (out, _ceil(in_features, 32 // bits)),
            "weight_scale": (out, num_groups), "weight_zero_point": (_ceil(out, 32 // bits), num_groups),
            "weight_g_idx": (in_features,), "weight_shape": (2,),
        }  # fmt: skip

    def rows(self, tensors: Tensors, start: int, stop: int) -> Tensor:
        _, in_features, bits = self._sizes(tensors)
        shifts, signed = range(0, 32, bits), 2 ** (bits - 1)
        numbers = unpack(tensors["weight_packed"][start:stop], shifts)[:, :in_features] - signed
        scales, zeros = tensors["weight_scale"][start:stop], None
        if "weight_zero_point" in tensors:
            zeros = _columns(tensors["weight_zero_point"].T, shifts, start, stop).T - signed
        group = tensors.get("weight_g_idx", _groups(in_features, _ceil(in_features, scales.shape[1])))
        return _affine(numbers, scales, zeros, group)

    def _sizes(self, tensors: Tensors) -> tuple[int, int, int]:
        if tensors["weight_shape"].shape != (2,):
            raise ValueError("weight_shape must hold the two sizes of the weight")
        out, in_features = tensors["weight_shape"].tolist()
        num_words = tensors["weight_packed"].shape[1]
        bits = [bits for bits in self.bits if in_features > 0 and _ceil(in_features, 32 // bits) == num_words]
        if not bits:
            raise ValueError(f"weight_packed has {num_words} words a row, weight_shape speaks of {in_features} values")
        return out, in_features, bits[0]


@dataclass(frozen=True)
class Scaled:
    """Numbers of 8 bits, integers or floats, with one scale a tensor, a row, a group of a row, or a block."""

    scale: str  # its leaf
    block: tuple[int, int] | None = None  # rows and columns; None: the scales divide the weight evenly

    @property
    def marks(self) -> tuple[str, ...]:
        return "weight", self.scale

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        zero_point = Leaf(EIGHT_BITS, True)
        return {"weight": Leaf(EIGHT_BITS), self.scale: Leaf(SCALES), "weight_zero_point": zero_point}

    def shapes(self, tensors: Tensors) -> Shapes:
        shape, scale = tuple(tensors["weight"].shape), tuple(tensors[self.scale].shape)
        block = self._block(tensors)
        grid = tuple(_ceil(size, per) for size, per in zip(shape, block, strict=True))
        flat = (scale in ((), (1,)) and grid == (1, 1)) or (scale == grid[:1] and grid[1] == 1)
        return {"": shape, self.scale: scale if flat else grid, "weight_zero_point": scale}

    def rows(self, tensors: Tensors, start: int, stop: int) -> Tensor:
        numbers = tensors["weight"][start:stop]
        per_row, per_column = self._block(tensors)
        row = torch.arange(start, stop) // per_row
        scales, zeros = _grid(tensors[self.scale])[row], None
        if "weight_zero_point" in tensors:
            zeros = _grid(tensors["weight_zero_point"])[row]
        return _affine(numbers, scales, zeros, _groups(numbers.shape[1], per_column))

    def _block(self, tensors: Tensors) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        scales = _grid(tensors[self.scale])
        if scales.dim() != 2:
            raise ValueError(f"{self.scale} must have at most two dimensions, not {scales.dim()}")
        if self.block is not None and scales.numel() > 1:
            return self.block
        rows, columns = (max(1, n // per) for n, per in zip(tensors["weight"].shape, scales.shape, strict=True))
        return rows, columns


def unpack(words: Tensor, shifts: Sequence[int]) -> Tensor:
    """The numbers in int32 words `[rows, words]`, one a shift: int32 `[rows, words * len(shifts)]`."""
    mask = 2 ** (32 // len(shifts)) - 1
    return ((words.unsqueeze(-1) >> torch.tensor(shifts, dtype=torch.int32)) & mask).flatten(-2)


def _columns(words: Tensor, shifts: Sequence[int], start: int, stop: int) -> Tensor:
    """Columns start to stop of the numbers in the words."""
    first = start // len(shifts)
    numbers = unpack(words[:, first : _ceil(stop, len(shifts))], shifts)
    return numbers[:, start - first * len(shifts) : stop - first * len(shifts)]


def _affine(numbers: Tensor, scales: Tensor, zeros: Tensor | None, group: Tensor) -> Tensor:
    """`(numbers - zero) * scale`, column i with the `[rows, groups]` values of group[i]."""
    if bool((group < 0).any()) or bool((group >= scales.shape[1]).any()):
        raise ValueError(f"g_idx names a group outside 0 to {scales.shape[1] - 1}")
    dense = numbers.float()
    if zeros is not None:
        dense -= zeros.float()[:, group]
    return dense.mul_(scales.float()[:, group])


def _groups(in_features: int, group_size: int) -> Tensor:
    return torch.arange(in_features) // (group_size or in_features)


def _grid(scales: Tensor) -> Tensor:
    """A scale of a tensor or of each row as `[rows, columns]`."""
    return scales.view(-1, 1) if scales.dim() < 2 else scales


def _ceil(size: int, per: int) -> int:
    return -(-size // per)
