"""Phi-2 (and 1, 1.5), a parallel block with LayerNorm and partial rotary; Phi-3 and 4, Llama with fused projections.

https://www.microsoft.com/en-us/research/blog/phi-2-the-surprising-power-of-small-language-models/,
https://arxiv.org/abs/2404.14219
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf, gguf_window, whole_or_window
from octavo.gpt.models.rope_reader import GGUF_CONSTANTS

PHI2: dict[str, Any] = {
    "norm": "layer", "norm_bias": True, "block": "parallel", "shared_norm": True, "gated": False, "activation": "gelu",
    "qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_bias": True,
}  # fmt: skip


class PhiConfig(DecoderConfig):
    family = "phi"


class Phi3Config(DecoderConfig):
    family = "phi3"


def phi2_from_hf(reader: ConfigReader) -> PhiConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    reader.require_one_of("qk_layernorm", False)
    return decoder_from_hf(PhiConfig, reader, {"norm_eps": "layer_norm_eps"}, **PHI2, partial_rotary=0.5)


def phi2_from_gguf(reader: ConfigReader, file: TensorSource) -> PhiConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(PhiConfig, reader, file, **PHI2)


def phi3_from_hf(reader: ConfigReader) -> Phi3Config:
    """What config.json says; ValueError for options that change what the network computes."""
    return decoder_from_hf(Phi3Config, reader, norm_eps=1e-5, **whole_or_window(reader))


def phi3_from_gguf(reader: ConfigReader, file: TensorSource) -> Phi3Config:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(Phi3Config, reader, file, sliding_window=gguf_window(reader))


PHI2_FAMILY = Family(
    name="phi",
    architectures=("PhiForCausalLM", "PhiModel"),
    gguf_architectures=("phi2",),
    network=Decoder,
    from_hf=phi2_from_hf,
    from_gguf=phi2_from_gguf,
    hf_names={
        "layers.{}.attn_norm": ("layers.{}.input_layernorm",),
        "layers.{}.self_attn.qkv_proj": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{}.self_attn.o_proj": ("layers.{}.self_attn.dense",),
        "layers.{}.mlp.up_proj": ("layers.{}.mlp.fc1",),
        "layers.{}.mlp.down_proj": ("layers.{}.mlp.fc2",),
        "norm": ("final_layernorm",),
    },
    gguf_names=GGUF_NAMES,
)
PHI3_FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    network=Decoder,
    from_hf=phi3_from_hf,
    from_gguf=phi3_from_gguf,
    hf_names={
        "layers.{}.attn_norm": ("layers.{}.input_layernorm",),
        "layers.{}.mlp_norm": ("layers.{}.post_attention_layernorm",),
    },
    gguf_names=GGUF_NAMES | {"layers.{}.mlp.gate_up_proj": ("blk.{}.ffn_up",)},
    gguf_constants=GGUF_CONSTANTS,
)
