"""Our network as a GGUF file, for llama.cpp: the weights of any source in one dtype, a vocabulary of bare numbers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Format
from torch import Tensor

from octavo.bench.peers.sources import stored_weights
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import family_of

FORMATS = {"float32": Format.F32, "float16": Format.F16, "bfloat16": Format.BF16}


def write_gguf(model: Model, path: Path, format: str) -> None:
    """Matrices in the dtype `format`, vectors and positions in float32; ValueError for what the file cannot say."""
    family = family_of(model.config)
    if family.to_gguf is None:
        raise ValueError(f"models of the family {family.name} are not written to GGUF files")
    metadata = {**_shape(model.config), **family.to_gguf(model.config)}
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_tokenizer_model("none")
    for key, value in metadata.items():
        add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{family.name}.{key}", value)
    for name, _, tensor in stored_weights(model, family.gguf_names, family.gguf_interleaved):
        is_exact = tensor.dim() == 1 or name.startswith("position_embd")
        kind = Format.F32 if is_exact else FORMATS[format]
        writer.add_tensor(name, _encoded(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shape(config: ModelConfig) -> dict[str, int]:
    return {
        "context_length": config.context_size,
        "embedding_length": config.dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "vocab_size": config.vocab_size,
    }


def _encoded(tensor: Tensor, kind: Format) -> np.ndarray:
    values = tensor.detach().float().cpu().numpy()
    return gguf.quantize(np.ascontiguousarray(values), kind)
