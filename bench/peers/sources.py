"""The weights that all contenders run: a file, a folder, or a seeded random network, and their plain tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.gpt.loading import hub
from octavo.gpt.loading.checkpoint import stored_parts
from octavo.gpt.loading.gguf import open_gguf_checkpoint
from octavo.gpt.loading.hf import read_config
from octavo.gpt.loading.loader import DUMMY, known_shape, load_model
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.family import Names
from octavo.gpt.models.registry import family_of
from octavo.gpt.models.rope import deinterleave_rows, interleave_rows
from octavo.kernels.ops import REFERENCE


@dataclass(frozen=True)
class ModelSource:
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


def open_source(name: str) -> ModelSource:
    """The model's place and shape, without its weights; ValueError or FileNotFoundError where there is none."""
    if name.startswith(DUMMY):
        return ModelSource(name, None, known_shape(name))
    path = hub.resolve(name)
    return ModelSource(name, path, read_config(path) if path.is_dir() else open_gguf_checkpoint(path)[0].config)


def plain_model(source: ModelSource, dtype: str, device: torch.device) -> Model:
    """The network on the reference backend, which packs nothing."""
    return load_model(source.path or source.name, REFERENCE, dtype, device.type).model


def stored_weights(model: Model, names: Names, interleaved: bool) -> Iterator[tuple[str, str, Tensor]]:
    """The network's weights as a format with these names stores them: (name, its module with {} for the layer, tensor).

    interleaved: whether rotary pairs are neighbours in that format; rows are put in its order.
    """
    config = model.config
    reorder = interleave_rows if interleaved else deinterleave_rows
    reorders = interleaved != getattr(config, "rope_interleaved", interleaved)
    for parameter, weight in model.named_parameters():
        for part in stored_parts(model, parameter, names):
            tensor = weight.narrow(0, part.first_row, part.num_rows)
            turned = reorders and part.module in family_of(config).rotary
            yield part.name, part.module, reorder(tensor, config.head_dim) if turned else tensor
