"""StableLM: LayerNorm, SwiGLU, rotary positions for a quarter of a head; some models run both branches side by side.

https://arxiv.org/abs/2402.17834
"""

from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.decoder import Decoder
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.family import Family
from octavo.gpt.models.names import GGUF_NAMES, HF_NAMES
from octavo.gpt.models.reading import decoder_from_gguf, decoder_from_hf

SHAPE: dict[str, Any] = {"norm": "layer", "norm_bias": True}
PARALLEL: dict[str, Any] = {"block": "parallel", "shared_norm": True}


class StableLMConfig(DecoderConfig):
    family = "stablelm"


def from_hf(reader: ConfigReader) -> StableLMConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    reader.require_one_of("qk_layernorm", False)
    facts = SHAPE | (PARALLEL if reader.flag("use_parallel_residual", False) else {})
    options = {"norm_eps": "layer_norm_eps", "qkv_bias": "use_qkv_bias"}
    return decoder_from_hf(
        StableLMConfig, reader, options, **facts, o_bias=False, norm_eps=1e-5, partial_rotary=0.25
    )  # fmt: skip


def from_gguf(reader: ConfigReader, file: TensorSource) -> StableLMConfig:
    """What a GGUF file's metadata and its optional tensors say."""
    is_parallel = "blk.0.ffn_norm.weight" not in file.tensors
    return decoder_from_gguf(StableLMConfig, reader, file, **SHAPE, **(PARALLEL if is_parallel else {}))


FAMILY = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM", "StableLmModel"),
    network=Decoder,
    from_hf=from_hf,
    from_gguf=from_gguf,
    hf_names=HF_NAMES,
    gguf_names=GGUF_NAMES,
)
