"""GPT-NeoX and Pythia: attention and feed-forward side by side, each with a LayerNorm; a quarter of a head is rotated.

https://arxiv.org/abs/2204.06745, https://arxiv.org/abs/2304.01373
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf

SHAPE: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False, "mlp_bias": True}
BLOCKS = {True: "parallel", False: "serial"}


class NeoXConfig(DecoderConfig):
    family = "gpt_neox"


def from_hf(reader: ConfigReader) -> NeoXConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    facts = SHAPE | {"activation": "gelu_erf", "block": BLOCKS[reader.flag("use_parallel_residual", True)]}
    options = {"norm_eps": "layer_norm_eps"}
    return decoder_from_hf(
        NeoXConfig, reader, options, **facts, qkv_bias=True, norm_eps=1e-5, partial_rotary=0.25
    )  # fmt: skip


def from_gguf(reader: ConfigReader, file: TensorSource) -> NeoXConfig:
    """What a GGUF file's metadata and its optional tensors say. GELU is the model's own, not its tanh form."""
    facts = SHAPE | {"activation": "gelu_erf", "block": BLOCKS[reader.flag("use_parallel_residual", True)]}
    return decoder_from_gguf(NeoXConfig, reader, file, **facts)


FAMILY = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    gguf_architectures=("gptneox",),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names={
        "embed_tokens": ("embed_in",),
        "layers.{}.attn_norm": ("layers.{}.input_layernorm",),
        "layers.{}.self_attn.qkv_proj": ("layers.{}.attention.query_key_value",),
        "layers.{}.self_attn.o_proj": ("layers.{}.attention.dense",),
        "layers.{}.mlp_norm": ("layers.{}.post_attention_layernorm",),
        "layers.{}.mlp.up_proj": ("layers.{}.mlp.dense_h_to_4h",),
        "layers.{}.mlp.down_proj": ("layers.{}.mlp.dense_4h_to_h",),
        "norm": ("final_layer_norm",),
        "lm_head": ("embed_out",),
    },
    hf_prefix="gpt_neox.",
    hf_grouped=("layers.{}.self_attn.qkv_proj",),
    gguf_names=GGUF_NAMES,
    hf_buffers=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)
