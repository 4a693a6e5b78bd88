"""Gemma 1, 2 and 3 (text): GeGLU, a scaled embedding, norms stored as differences from 1.

Gemma 2 adds soft caps, norms around each branch and sliding layers in turn with full ones; Gemma 3 has norms of q and k
in place of the attention's cap, and a rotary table of its own for sliding layers.
https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118, https://arxiv.org/abs/2503.19786
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig, LayerType
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES, SANDWICH
from octavo.gpt.models.reading import (
    decoder_from_gguf,
    decoder_from_hf,
    gguf_window,
    local_and_global,
    local_theta,
    sliding_layers,
    whole_or_window,
)

PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}  # every so many layers one sees everything
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose scale is another, as llama.cpp knows them


class GemmaConfig(DecoderConfig):
    family = "gemma"


class Gemma1Config(DecoderConfig):
    family = "gemma1"


def _shape(dim: int, kind: str) -> dict[str, Any]:
    return {
        "activation": "gelu", "embedding_scale": dim**0.5, "tied_embeddings": True, "head_dim": 256,
        "post_norm": kind in PERIODS, "qk_norm": "head" if kind.startswith("gemma3") else "",
    }  # fmt: skip


def from_hf(reader: ConfigReader) -> GemmaConfig:
    """What config.json of a Gemma 2 or 3 says."""
    kind = reader.get("model_type", "gemma2")
    reader.require_one_of("use_bidirectional_attention", False)
    window, slides = whole_or_window(reader), sliding_layers(reader, PERIODS[kind])
    facts = _shape(reader.count("hidden_size"), kind) | window
    facts |= {
        "attention_scale": reader.number("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": _cap(reader, "attn_logit_softcapping"),
        "logit_softcap": _cap(reader, "final_logit_softcapping"),
    }
    if kind == "gemma2":
        facts["layer_types"] = tuple(LayerType(is_sliding=flag and bool(window)) for flag in slides)
    else:
        local = reader.number("rope_local_base_freq", 10000.0)
        facts |= {"local_rope_theta": local_theta(reader, local), "rope_theta": 1000000.0}
        facts |= {"layer_types": local_and_global(slides, bool(window)), "rope_layer_type": "full_attention"}
    return decoder_from_hf(GemmaConfig, reader, **facts)


def gemma1_from_hf(reader: ConfigReader) -> Gemma1Config:
    """What config.json of a Gemma 1 says; its "gelu" always meant the tanh form."""
    if reader.get("hidden_act") == "gelu":
        reader = ConfigReader(reader.path, reader.table | {"hidden_act": "gelu_pytorch_tanh"})
    return decoder_from_hf(Gemma1Config, reader, **_shape(reader.count("hidden_size"), "gemma"))


def _cap(reader: ConfigReader, name: str) -> float:
    return 0.0 if reader.get(name) is None else reader.number(name)


def from_gguf(reader: ConfigReader, file: TensorSource) -> GemmaConfig:
    """What a GGUF file of a Gemma 2 or 3 says; its norms hold the sums."""
    kind, num_layers = reader.prefix.rstrip("."), reader.count("block_count")
    dim, heads = reader.count("embedding_length"), reader.count("attention.head_count")
    facts, window = _shape(dim, kind), gguf_window(reader)
    slides = [(i + 1) % PERIODS[kind] != 0 and window > 0 for i in range(num_layers)]
    scalar = dim / heads if num_layers == LARGEST[kind] else reader.count("attention.key_length", 256)
    facts |= {
        "sliding_window": window, "attention_scale": scalar**-0.5,
        "attention_softcap": _cap(reader, "attn_logit_softcapping"),
        "logit_softcap": _cap(reader, "final_logit_softcapping"),
        "layer_types": tuple(LayerType(is_sliding=flag) for flag in slides),
    }  # fmt: skip
    if kind == "gemma3":
        facts |= {"local_rope_theta": reader.number("rope.freq_base_swa", 10000.0), "rope_theta": 1000000.0}
        slides = [(i + 1) % PERIODS[kind] != 0 for i in range(num_layers)]
        facts["layer_types"] = local_and_global(slides, window > 0)
    return decoder_from_gguf(GemmaConfig, reader, file, **_without_shape(facts))


def gemma1_from_gguf(reader: ConfigReader, file: TensorSource) -> Gemma1Config:
    """What a GGUF file of a Gemma 1 says."""
    return decoder_from_gguf(
        Gemma1Config, reader, file, **_without_shape(_shape(reader.count("embedding_length"), "gemma"))
    )


def _without_shape(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts but those that a GGUF file states."""
    return {name: value for name, value in facts.items() if name not in ("tied_embeddings", "head_dim")}


GEMMA_FAMILY = Family(
    name="gemma",
    architectures=("Gemma2ForCausalLM", "Gemma2Model", "Gemma3ForCausalLM", "Gemma3TextModel"),
    model_types=("gemma2", "gemma3_text"),
    gguf_architectures=("gemma2", "gemma3"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES | SANDWICH,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
GEMMA1_FAMILY = Family(
    name="gemma1",
    architectures=("GemmaForCausalLM", "GemmaModel"),
    model_types=("gemma",),
    gguf_architectures=("gemma",),
    network=Decoder,
    from_hf=gemma1_from_hf,
    from_gguf=gemma1_from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
