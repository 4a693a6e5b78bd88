"""Rotary positions: their tables, how long contexts stretch them, and what model files say of that.

Su et al., RoFormer, https://arxiv.org/abs/2104.09864; Llama 3's stretch: https://arxiv.org/abs/2407.21783.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.gpt.models.config_reader import ConfigReader, TensorSource

RopeTables = tuple[Tensor, Tensor]  # cos, sin: [context_size, head_dim / 2] float32

GGUF_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by: llama3's stretch, worked out


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the slow frequencies (`llama3`), a division of all (`linear`) or of each (`factors`)."""

    kind: str  # "linear", "llama3" or "factors"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()  # one a frequency, as GGUF files store llama3's stretch


def rope_tables(head_dim: int, context_size: int, theta: float, scaling: RopeScaling | None) -> RopeTables:
    """cos and sin of every position's angles, on the CPU: the same bits for every device."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = _stretch(frequencies, scaling)
    angles = torch.outer(torch.arange(context_size, dtype=torch.float32, device="cpu"), frequencies)
    return angles.cos(), angles.sin()


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, ramp between; or do what `kind` says instead."""
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float32, device="cpu")
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the original context
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(slow, frequencies, ramp.clamp(0, 1))


def rope_from_hf(reader: ConfigReader) -> tuple[float, RopeScaling | None]:
    """The base and the scaling in config.json: in `rope_parameters` since transformers 5, in `rope_scaling` before."""
    old, new = reader.get("rope_scaling", {}), reader.get("rope_parameters", {})
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise ValueError(f"{reader.path}: rope_parameters and rope_scaling must be objects")
    beside = {name: reader.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    table = {**beside, **old, **new}
    rope = ConfigReader(reader.path, {"rope_type": table.get("type"), **table})
    return rope.number("rope_theta", 10000.0), _scaling_from_hf(rope)


def _scaling_from_hf(rope: ConfigReader) -> RopeScaling | None:
    rope.require_one_of("partial_rotary_factor", 1)
    rope.require_one_of("rope_type", "default", "linear", "llama3")
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise ValueError(f"{rope.path}: low_freq_factor ({low}) must be below high_freq_factor ({high})")
    return RopeScaling("llama3", rope.number("factor"), low, high, rope.count("original_max_position_embeddings"))


def scaling_from_gguf(reader: ConfigReader, file: TensorSource, head_dim: int) -> RopeScaling | None:
    """The scaling in a GGUF file's metadata and in its tensor of factors, where it has one."""
    reader.require_one_of("rope.scale_linear", 1.0)
    reader.require_one_of("rope.scaling.type", "none", "linear")
    default = "none" if reader.get("rope.scaling.factor") is None else "linear"  # as llama.cpp reads a factor alone
    is_linear = reader.get("rope.scaling.type", default) == "linear"
    if GGUF_FACTORS not in file.tensors:
        return RopeScaling("linear", reader.number("rope.scaling.factor")) if is_linear else None
    if is_linear:
        raise ValueError(f"{reader.path}: linear rotary scaling beside tensor {GGUF_FACTORS} is not supported")
    if file.tensors[GGUF_FACTORS].shape != (head_dim // 2,):
        raise ValueError(f"{reader.path}: tensor {GGUF_FACTORS} must have {head_dim // 2} values, one a frequency")
    factors = file.read(GGUF_FACTORS)
    if not bool((factors > 0).all()):
        raise ValueError(f"{reader.path}: tensor {GGUF_FACTORS} must hold positive numbers")
    return RopeScaling("factors", factors=tuple(factors.tolist()))


def interleave_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k, `[heads * head_dim, ...]`, from rotary pairs `(i, i + head_dim / 2)` to neighbours."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def deinterleave_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Undo `interleave_rows`."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()
