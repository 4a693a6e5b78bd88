"""Qwen 2, 2.5 and 3: Llama with biases of q, k and v, or with norms of each head's q and k.

https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2505.09388
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig, LayerType
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf, layer_words, whole_or_window
from octavo.gpt.models.rope_reader import GGUF_CONSTANTS

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True, "o_bias": False},
    "qwen3": {"qk_norm": "head", "head_dim": 128},
}


class QwenConfig(DecoderConfig):
    family = "qwen"


def from_hf(reader: ConfigReader) -> QwenConfig:
    """What config.json says; layers from `max_window_layers` on slide, if `use_sliding_window` says so at all."""
    facts = dict(VARIANTS[reader.get("model_type", "qwen2")])
    if reader.flag("use_sliding_window", False) and (window := whole_or_window(reader)):
        begin = reader.get("max_window_layers", 28)
        slides = layer_words(reader) or [i >= begin for i in range(reader.count("num_hidden_layers"))]
        facts |= window | {"layer_types": tuple(LayerType(is_sliding=flag) for flag in slides)}
    return decoder_from_hf(QwenConfig, reader, **facts)


def from_gguf(reader: ConfigReader, file: TensorSource) -> QwenConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    qk_norm = VARIANTS[reader.prefix.rstrip(".")].get("qk_norm", "")
    return decoder_from_gguf(QwenConfig, reader, file, qk_norm=qk_norm)


FAMILY = Family(
    name="qwen",
    architectures=("Qwen2ForCausalLM", "Qwen2Model", "Qwen3ForCausalLM", "Qwen3Model"),
    model_types=("qwen2", "qwen3"),
    gguf_architectures=("qwen2", "qwen3"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
    gguf_constants=GGUF_CONSTANTS,
)
