"""Command R and R7B: one LayerNorm without bias for both branches, scaled logits; R7B's sliding layers alone have
positions. https://docs.cohere.com/docs/command-r
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig, LayerType
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf, gguf_window, sliding_layers, whole_or_window

SHAPE: dict[str, Any] = {"norm": "layer", "block": "parallel", "shared_norm": True, "rope_interleaved": True}
PERIOD = 4  # of R7B: every fourth layer sees everything, and has no positions


class CohereConfig(DecoderConfig):
    family = "cohere"


def from_hf(reader: ConfigReader) -> CohereConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    reader.require_one_of("use_qk_norm", False)
    facts = SHAPE | {"logit_scale": reader.number("logit_scale", 0.0625), "tied_embeddings": True, "norm_eps": 1e-5}
    if reader.get("model_type") == "cohere2":
        facts |= whole_or_window(reader)
        facts["layer_types"] = _layers(sliding_layers(reader, PERIOD), "sliding_window" in facts)
    return decoder_from_hf(CohereConfig, reader, {"norm_eps": "layer_norm_eps"}, **facts)


def from_gguf(reader: ConfigReader, file: TensorSource) -> CohereConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    facts = SHAPE | {"logit_scale": reader.number("logit_scale", 1.0)}
    if reader.prefix == "cohere2.":
        slides = [(i + 1) % PERIOD != 0 for i in range(reader.count("block_count"))]
        window = gguf_window(reader)
        facts |= {"sliding_window": window, "layer_types": _layers(slides, window > 0)}
    return decoder_from_gguf(CohereConfig, reader, file, **facts)


def _layers(slides: list[bool], has_window: bool) -> tuple[LayerType, ...]:
    return tuple(LayerType(flag and has_window, "global" if flag else "none") for flag in slides)


FAMILY = Family(
    name="cohere",
    architectures=("CohereForCausalLM", "CohereModel", "Cohere2ForCausalLM", "Cohere2Model"),
    model_types=("cohere", "cohere2"),
    gguf_architectures=("command-r", "cohere2"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
)
