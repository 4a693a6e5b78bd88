"""Granite: Llama with four scales, of the embedding, the attention, the branches and the logits.

https://arxiv.org/abs/2405.04324
"""

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES, ROTARY
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf
from octavo.gpt.models.rope_reader import GGUF_CONSTANTS


class GraniteConfig(DecoderConfig):
    family = "granite"


def from_hf(reader: ConfigReader) -> GraniteConfig:
    """What config.json says; logits are divided by `logits_scaling`."""
    return decoder_from_hf(
        GraniteConfig,
        reader,
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        attention_scale=reader.number("attention_multiplier", 1.0),
        residual_scale=reader.number("residual_multiplier", 1.0),
        logit_scale=1 / reader.number("logits_scaling", 1.0),
    )


def from_gguf(reader: ConfigReader, file: TensorSource) -> GraniteConfig:
    """What a GGUF file's metadata and its optional tensors say. Rows of q and k keep llama.cpp's order."""
    return decoder_from_gguf(
        GraniteConfig,
        reader,
        file,
        rope_interleaved=True,
        embedding_scale=reader.number("embedding_scale", 1.0),
        residual_scale=reader.number("residual_scale", 1.0),
        logit_scale=1 / reader.number("logit_scale", 1.0),
    )


FAMILY = Family(
    name="granite",
    architectures=("GraniteForCausalLM", "GraniteModel"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    gguf_constants=GGUF_CONSTANTS,
    rotary=ROTARY,
    gguf_interleaved=True,
)
