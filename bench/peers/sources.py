"""The weights that everyone runs: a file, a folder, or a seeded random network, and their plain tensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.gpt.loading import hub
from octavo.gpt.loading.gguf import open_gguf_checkpoint
from octavo.gpt.loading.hf_config import read_config
from octavo.gpt.loading.loader import DUMMY, load_model
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import KNOWN_SHAPES, ModelConfig
from octavo.kernels.ops import REFERENCE


@dataclass(frozen=True)
class Source:
    """A model by name; path is its GGUF file or Hugging Face folder, None for random weights."""

    name: str
    path: Path | None
    config: ModelConfig

    @property
    def dummy(self) -> bool:
        return self.path is None

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and self.path.is_file()


def open_source(name: str) -> Source:
    """The model's place and shape, without its weights; ValueError or FileNotFoundError where there is none."""
    if name.startswith(DUMMY):
        shape = name.removeprefix(DUMMY)
        if shape not in KNOWN_SHAPES:
            known = ", ".join(DUMMY + shape for shape in KNOWN_SHAPES)
            raise ValueError(f"unknown model {name!r}: dummy models are {known}")
        return Source(name, None, KNOWN_SHAPES[shape])
    path = hub.resolve(name)
    return Source(name, path, read_config(path) if path.is_dir() else open_gguf_checkpoint(path)[0].config)


def plain_model(source: Source, dtype: str, device: torch.device) -> Model:
    """The network on the reference backend, which packs nothing."""
    return load_model(source.path or source.name, REFERENCE, dtype, device.type).model


def separate(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with Llama's fused projections apart: q, k, v, gate and up."""
    found: dict[str, Tensor] = {}
    kv_rows = config.num_kv_heads * config.head_dim
    parts = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), [config.num_heads * config.head_dim, kv_rows, kv_rows]),
        "gate_up_proj": (("gate_proj", "up_proj"), [config.hidden_dim, config.hidden_dim]),
    }
    for name, tensor in weights.items():
        module = name.split(".")[-2]
        if module in parts:
            names, rows = parts[module]
            found |= {name.replace(module, part): t for part, t in zip(names, tensor.split(rows), strict=True)}
        else:
            found[name] = tensor
    return found


def turn_halves(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k from interleaved rotary pairs `(2i, 2i + 1)` to halves `(i, i + head_dim / 2)`."""
    return tensor.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def interleave(tensor: Tensor, head_dim: int) -> Tensor:
    """The way back of `turn_halves`."""
    return tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()
