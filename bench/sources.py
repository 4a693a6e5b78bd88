"""The weights that everyone runs: a file, a folder, or a seeded random network, and their plain tensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.gpt import hub
from octavo.gpt.config import KNOWN_SHAPES, ModelConfig
from octavo.gpt.gguf_checkpoint import open_gguf_checkpoint
from octavo.gpt.hf_config import read_config
from octavo.gpt.model import Linear, Model
from octavo.gpt.weights import DUMMY, load_model
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


def tensors(model: Model) -> dict[str, Tensor]:
    """Every weight of an unpacked model under its own name, a tied head left out."""
    found = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            found[f"{name}.weight"] = module.weight
    return found


def cast(model: Model, dtype: torch.dtype) -> Model:
    """Change an unpacked model's weights in place, rotary tables too; returns it."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight = module.weight.to(dtype)
    if model.packed_head is not None:
        model.packed_head = model.embedding.weight.detach()
    return model
