"""Family: everything a loader, an export or a benchmark may ask about one model family, declared in one file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.kernels.ops import REFERENCE, Ops

Names = Mapping[str, tuple[str, ...]]  # our module -> the file's modules whose rows it stacks; {} is the layer


@dataclass(frozen=True)
class Family:
    """One model family. The tables of names hold what differs from our own; exports read them backwards.

    `from_hf` and `from_gguf` raise ValueError, naming file and option, for what the network cannot do: an option that
    changes the computation is refused, never ignored. `to_hf` gives the arguments of transformers' configuration, with
    `model_type`; `to_gguf` the metadata below the family's name that not every family has. Both raise ValueError for
    what the other format cannot say; a family that nobody exports has neither.
    """

    name: str
    architectures: tuple[str, ...]  # of config.json
    network: Callable[..., Model]  # (config, ops, seed)
    from_hf: Callable[[ConfigReader], ModelConfig]
    from_gguf: Callable[[ConfigReader, TensorSource], ModelConfig] | None = None  # None: llama.cpp does not have it
    to_hf: Callable[[Any], dict[str, Any]] | None = None
    to_gguf: Callable[[Any], dict[str, Any]] | None = None
    gguf_names: Names = field(default_factory=dict)
    model_types: tuple[str, ...] = ()  # of config.json, where the name is not the only one
    gguf_architectures: tuple[str, ...] = ()  # `general.architecture` of GGUF files, likewise
    hf_names: Names = field(default_factory=dict)
    hf_prefix: str = "model."  # of every tensor but the head's
    hf_transposed: tuple[str, ...] = ()  # modules whose weight lies [in_features, out_features], as GPT-2's Conv1D
    hf_grouped: tuple[str, ...] = ()  # our modules of q, k and v whose rows the file groups by head
    hf_norm_offset: float = 0.0  # what is added to the stored weights of norms: 1, where they are kept as differences
    hf_buffers: str = ""  # regular expression: tensors that old checkpoints carry and no network needs
    gguf_constants: tuple[str, ...] = ()  # tensors that `from_gguf` reads into the configuration
    rotary: tuple[str, ...] = ()  # modules of either format whose rows are rotary pairs
    gguf_interleaved: bool = False  # in a GGUF file those pairs are neighbours
    known_shapes: Mapping[str, ModelConfig] = field(default_factory=dict)  # for random weights

    @property
    def hf_types(self) -> tuple[str, ...]:
        """The `model_type`s of config.json that this family reads."""
        return self.model_types or (self.name,)

    @property
    def gguf_types(self) -> tuple[str, ...]:
        """The architectures of GGUF files that this family reads."""
        return (self.gguf_architectures or (self.name,)) if self.from_gguf else ()

    def empty(self, config: ModelConfig, ops: Ops = REFERENCE) -> Model:
        """The network's modules and shapes, without memory."""
        with torch.device("meta"):
            return self.network(config, ops)
