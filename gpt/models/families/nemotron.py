"""Nemotron: LayerNorm stored as a difference from 1, squared ReLU without a gate, rotary positions for half a head.

https://arxiv.org/abs/2402.16819
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf

SHAPE: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False, "activation": "relu2"}


class NemotronConfig(DecoderConfig):
    family = "nemotron"


def from_hf(reader: ConfigReader) -> NemotronConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    return decoder_from_hf(NemotronConfig, reader, {"norm_eps": "norm_eps"}, **SHAPE, norm_eps=1e-5, partial_rotary=0.5)


def from_gguf(reader: ConfigReader, file: TensorSource) -> NemotronConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(NemotronConfig, reader, file, **SHAPE)


FAMILY = Family(
    name="nemotron",
    architectures=("NemotronForCausalLM", "NemotronModel"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
