"""GLM-4: Llama with half of each head rotated, pairs as neighbours, and gate and up in one tensor; GLM-4-0414 has norms
around each branch. https://arxiv.org/abs/2406.12793
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf

FUSED = {"layers.{}.mlp.gate_up_proj": ("layers.{}.mlp.gate_up_proj",)}
GGUF_GATE_UP = {"layers.{}.mlp.gate_up_proj": ("blk.{}.ffn_up",)}
SHAPE: dict[str, Any] = {"rope_interleaved": True, "o_bias": False}


class GlmConfig(DecoderConfig):
    family = "glm"


class Glm4Config(DecoderConfig):
    family = "glm4"


def glm_from_hf(reader: ConfigReader) -> GlmConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    return decoder_from_hf(GlmConfig, reader, **SHAPE, head_dim=128, norm_eps=1.5625e-07, partial_rotary=0.5)


def glm4_from_hf(reader: ConfigReader) -> Glm4Config:
    """What config.json says; ValueError for options that change what the network computes."""
    facts = SHAPE | {"post_norm": True}
    return decoder_from_hf(Glm4Config, reader, **facts, head_dim=128, norm_eps=1.5625e-07, partial_rotary=0.5)


def glm_from_gguf(reader: ConfigReader, file: TensorSource) -> GlmConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(GlmConfig, reader, file, rope_interleaved=True)


def glm4_from_gguf(reader: ConfigReader, file: TensorSource) -> Glm4Config:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(Glm4Config, reader, file, rope_interleaved=True, post_norm=True)


GLM_FAMILY = Family(
    name="glm",
    architectures=("GlmForCausalLM", "GlmModel"),
    gguf_architectures=("chatglm",),
    network=Decoder,
    from_hf=glm_from_hf,
    from_gguf=glm_from_gguf,
    hf_names=HF_NAMES | FUSED,
    gguf_names=GGUF_NAMES | GGUF_GATE_UP,
)
GLM4_FAMILY = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM", "Glm4Model"),
    network=Decoder,
    from_hf=glm4_from_hf,
    from_gguf=glm4_from_gguf,
    hf_names=HF_NAMES
    | FUSED
    | {
        "layers.{}.attn_post_norm": ("layers.{}.post_self_attn_layernorm",),
        "layers.{}.mlp_post_norm": ("layers.{}.post_mlp_layernorm",),
    },
    gguf_names=GGUF_NAMES | GGUF_GATE_UP,
)
