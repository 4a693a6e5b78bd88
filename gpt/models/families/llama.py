"""Llama and what differs from it by a line: Mistral, SmolLM3, Arcee (https://arxiv.org/abs/2302.13971).

Rotary positions, RMSNorm, SwiGLU, grouped-query attention. Mistral's layers may see a window only, some of SmolLM3's
have no positions, Arcee's feed-forward is `down(relu(up)^2)`.
"""

from dataclasses import dataclass
from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig, LayerType
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES, ROTARY
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf, whole_or_window
from octavo.gpt.models.rope import RopeScaling
from octavo.gpt.models.rope_reader import GGUF_CONSTANTS


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    family = "llama"


class Llama(Decoder):
    """The kit's network as it is."""


ARCEE: dict[str, Any] = {"gated": False, "activation": "relu2"}


def from_hf(reader: ConfigReader) -> LlamaConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    kind = reader.get("model_type", "llama")
    facts: dict[str, Any] = dict(ARCEE) if kind == "arcee" else {}
    if kind == "mistral":
        facts |= whole_or_window(reader)
    if kind == "smollm3":
        reader.require_one_of("use_sliding_window", False)
        facts |= {"layer_types": _smollm3_layers(reader), "rope_theta": 2000000.0}
    elif kind != "mistral" and whole_or_window(reader):
        reader.require_one_of("sliding_window", None)
    return decoder_from_hf(LlamaConfig, reader, **facts)


def _smollm3_layers(reader: ConfigReader) -> tuple[LayerType, ...]:
    """Every fourth layer has no positions, or those whose entry in `no_rope_layers` is 0."""
    num_layers, interval = reader.count("num_hidden_layers"), reader.count("no_rope_layer_interval", 4)
    has_rope = reader.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(has_rope, list) or len(has_rope) != num_layers or any(flag not in (0, 1) for flag in has_rope):
        raise ValueError(f"{reader.path}: no_rope_layers must be {num_layers} numbers 0 or 1")
    return tuple(LayerType(rope="global" if flag else "none") for flag in has_rope)


def from_gguf(reader: ConfigReader, file: TensorSource) -> LlamaConfig:
    """What a GGUF file's metadata and its optional tensors say. Rows of q and k keep llama.cpp's order."""
    facts: dict[str, Any] = dict(ARCEE) if reader.prefix == "arcee." else {}
    if reader.prefix == "smollm3.":
        facts["layer_types"] = tuple(
            LayerType(rope="global" if (i + 1) % 4 else "none") for i in range(reader.count("block_count"))
        )
    return decoder_from_gguf(LlamaConfig, reader, file, rope_interleaved=True, **facts)


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The arguments of transformers' configuration of the same network."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        if scaling.kind not in ("linear", "llama3"):
            raise ValueError("transformers has no rotary scaling by a list of factors")
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        rope |= {"original_max_position_embeddings": scaling.original_context}
    if config.layer_types or config.sliding_window or not config.gated:
        raise ValueError("only plain Llama is exported to transformers")
    options = {
        "vocab_size": config.vocab_size, "max_position_embeddings": config.context_size, "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_dim, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings, "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias,
    }  # fmt: skip
    return {"model_type": "llama", "rope_parameters": rope, **options}


def to_gguf(config: LlamaConfig) -> dict[str, Any]:
    """Llama's own metadata of a GGUF file."""
    if config.rope_scaling is not None:
        raise ValueError("rotary scaling is not written to GGUF files")
    return {
        "attention.layer_norm_rms_epsilon": config.norm_eps, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }  # fmt: skip


FAMILY = Family(
    name="llama",
    architectures=(
        "LlamaForCausalLM", "LlamaModel", "MistralForCausalLM", "MistralModel", "SmolLM3ForCausalLM", "SmolLM3Model",
        "ArceeForCausalLM", "ArceeModel",
    ),
    model_types=("llama", "mistral", "smollm3", "arcee"),
    gguf_architectures=("llama", "smollm3", "arcee"),
    network=Llama,
    from_hf=from_hf,
    from_gguf=from_gguf,
    to_hf=to_hf,
    to_gguf=to_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    gguf_constants=GGUF_CONSTANTS,
    rotary=ROTARY,
    gguf_interleaved=True,
    known_shapes={
        "smollm2": LlamaConfig(
            vocab_size=49152, context_size=8192, dim=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_dim=1536, rope_theta=100000.0, bos_id=1, eos_ids=(2,),
        ),
        "llama-3.2-1b": LlamaConfig(
            vocab_size=128256, context_size=131072, dim=2048, num_layers=16, num_heads=32, num_kv_heads=8,
            head_dim=64, intermediate_dim=8192, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 32.0),
            bos_id=128000, eos_ids=(128001, 128008, 128009),
        ),
    },
)  # fmt: skip
