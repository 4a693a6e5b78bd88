"""OLMo 2 and 3: norms after the branches and none before, norms of all of q and k; most of OLMo 3's layers slide.

https://arxiv.org/abs/2501.00656
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
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

SHAPE: dict[str, Any] = {"pre_norm": False, "post_norm": True, "qk_norm": "projection"}
PERIOD = 4  # of OLMo 3: every fourth layer sees everything


class OlmoConfig(DecoderConfig):
    family = "olmo"


def from_hf(reader: ConfigReader) -> OlmoConfig:
    """What config.json says; OLMo 3's sliding layers keep the rotary table that is not stretched."""
    facts = dict(SHAPE)
    if reader.get("model_type") == "olmo3":
        window = whole_or_window(reader)
        facts |= window | {"local_rope_theta": local_theta(reader, reader.number("rope_theta", 500000.0))}
        facts |= {"rope_layer_type": "full_attention", "rope_theta": 500000.0}
        facts["layer_types"] = local_and_global(sliding_layers(reader, PERIOD), bool(window))
    else:
        reader.require_one_of("sliding_window", None)
    return decoder_from_hf(OlmoConfig, reader, **facts)


def from_gguf(reader: ConfigReader, file: TensorSource) -> OlmoConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    facts = dict(SHAPE)
    if window := gguf_window(reader):
        slides = [(i + 1) % PERIOD != 0 for i in range(reader.count("block_count"))]
        facts |= {"sliding_window": window, "layer_types": local_and_global(slides, True)}
        facts["local_rope_theta"] = reader.number("rope.freq_base", 500000.0)
    return decoder_from_gguf(OlmoConfig, reader, file, **facts)


FAMILY = Family(
    name="olmo",
    architectures=("Olmo2ForCausalLM", "Olmo2Model", "Olmo3ForCausalLM", "Olmo3Model"),
    model_types=("olmo2", "olmo3"),
    gguf_architectures=("olmo2",),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES | SANDWICH,
    gguf_names=GGUF_NAMES,
)
