"""OPT: GPT-2's block with ReLU and a table of positions that begins two rows in (https://arxiv.org/abs/2205.01068)."""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.reading import decoder_from_hf

SHAPE: dict[str, Any] = {
    "norm": "layer", "norm_bias": True, "gated": False, "positions": "learned", "position_offset": 2, "qkv_bias": True,
    "o_bias": True, "mlp_bias": True,
}  # fmt: skip


class OptConfig(DecoderConfig):
    family = "opt"


def from_hf(reader: ConfigReader) -> OptConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    for name in ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"):
        reader.require_one_of(name, True)
    reader.require_one_of("_remove_final_layer_norm", False)
    reader.require_one_of("word_embed_proj_dim", reader.count("hidden_size"))
    table = reader.table | {"hidden_act": reader.get("activation_function", "relu")}
    facts = SHAPE | {"activation": "relu", "norm_eps": 1e-5, "tied_embeddings": True}
    return decoder_from_hf(OptConfig, ConfigReader(reader.path, table), {"intermediate_dim": "ffn_dim"}, **facts)


FAMILY = Family(
    name="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    network=Decoder,
    from_hf=from_hf,
    hf_names={
        "layers.{}.attn_norm": ("layers.{}.self_attn_layer_norm",),
        "layers.{}.self_attn.qkv_proj": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{}.self_attn.o_proj": ("layers.{}.self_attn.out_proj",),
        "layers.{}.mlp_norm": ("layers.{}.final_layer_norm",),
        "layers.{}.mlp.up_proj": ("layers.{}.fc1",),
        "layers.{}.mlp.down_proj": ("layers.{}.fc2",),
        "norm": ("final_layer_norm",),
    },
    hf_prefix="model.decoder.",
)
