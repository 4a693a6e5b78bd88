"""StarCoder (GPT-BigCode), GPT-2 whose heads share one key and value; StarCoder 2, with rotary positions and a window.

https://arxiv.org/abs/2305.06161, https://arxiv.org/abs/2402.19173
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf, gguf_window, whole_or_window

SHAPE: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu"}


class BigCodeConfig(DecoderConfig):
    family = "gpt_bigcode"


class StarCoder2Config(DecoderConfig):
    family = "starcoder2"


def bigcode_from_hf(reader: ConfigReader) -> BigCodeConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    for name in ("multi_query", "scale_attn_weights"):
        reader.require_one_of(name, True)
    reader.require_one_of("add_cross_attention", False)
    table = reader.table | {"hidden_act": reader.get("activation_function", "gelu_pytorch_tanh")}
    table |= {"n_inner": reader.get("n_inner", 4 * reader.count("n_embd")), "num_key_value_heads": 1}
    options = {
        "dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer", "context_size": "n_positions",
        "intermediate_dim": "n_inner", "norm_eps": "layer_norm_epsilon",
    }  # fmt: skip
    facts = SHAPE | {"positions": "learned", "qkv_bias": True, "o_bias": True, "mlp_bias": True}
    return decoder_from_hf(
        BigCodeConfig, ConfigReader(reader.path, table), options, **facts, norm_eps=1e-5, tied_embeddings=True
    )


def bigcode_from_gguf(reader: ConfigReader, file: TensorSource) -> BigCodeConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(BigCodeConfig, reader, file, **SHAPE, positions="learned")


def starcoder2_from_hf(reader: ConfigReader) -> StarCoder2Config:
    """What config.json says; ValueError for options that change what the network computes."""
    has_bias = reader.flag("use_bias", True)
    options = {"norm_eps": "norm_epsilon", "qkv_bias": "use_bias", "mlp_bias": "use_bias"}
    facts = SHAPE | {"qkv_bias": has_bias, "mlp_bias": has_bias, "norm_eps": 1e-5, "tied_embeddings": True}
    return decoder_from_hf(StarCoder2Config, reader, options, **facts, **whole_or_window(reader))


def starcoder2_from_gguf(reader: ConfigReader, file: TensorSource) -> StarCoder2Config:
    """What a GGUF file's metadata and its optional tensors say."""
    return decoder_from_gguf(StarCoder2Config, reader, file, **SHAPE, sliding_window=gguf_window(reader))


BIGCODE_FAMILY = Family(
    name="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM", "GPTBigCodeModel"),
    gguf_architectures=("starcoder",),
    network=Decoder,
    from_hf=bigcode_from_hf,
    from_gguf=bigcode_from_gguf,
    hf_names={
        "embed_tokens": ("wte",),
        "embed_positions": ("wpe",),
        "layers.{}.attn_norm": ("h.{}.ln_1",),
        "layers.{}.self_attn.qkv_proj": ("h.{}.attn.c_attn",),
        "layers.{}.self_attn.o_proj": ("h.{}.attn.c_proj",),
        "layers.{}.mlp_norm": ("h.{}.ln_2",),
        "layers.{}.mlp.up_proj": ("h.{}.mlp.c_fc",),
        "layers.{}.mlp.down_proj": ("h.{}.mlp.c_proj",),
        "norm": ("ln_f",),
    },
    gguf_names=GGUF_NAMES,
    hf_prefix="transformer.",
    hf_buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
)
STARCODER2_FAMILY = Family(
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM", "Starcoder2Model"),
    network=Decoder,
    from_hf=starcoder2_from_hf,
    from_gguf=starcoder2_from_gguf,
    hf_names={
        "layers.{}.attn_norm": ("layers.{}.input_layernorm",),
        "layers.{}.mlp_norm": ("layers.{}.post_attention_layernorm",),
        "layers.{}.self_attn.qkv_proj": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{}.mlp.up_proj": ("layers.{}.mlp.c_fc",),
        "layers.{}.mlp.down_proj": ("layers.{}.mlp.c_proj",),
    },
    gguf_names=GGUF_NAMES,
)
