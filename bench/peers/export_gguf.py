"""Our network as a GGUF file, for llama.cpp: the weights of any source in one format, a vocabulary of bare numbers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Format
from torch import Tensor

from octavo.bench.peers.sources import interleave, separate
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig

FORMATS = {"float32": Format.F32, "float16": Format.F16, "bfloat16": Format.BF16, "q8_0": Format.Q8_0}

NAMES = {
    "gpt2": {
        "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    },
    "llama": {
        "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    },
}  # fmt: skip


def write_gguf(model: Model, path: Path, format: str) -> None:
    """Matrices in the format, vectors and positions in float32; ValueError for what the file cannot say."""
    config = model.config
    if config.rope_scaling is not None:
        raise ValueError("rotary scaling is not written to GGUF files")
    writer = gguf.GGUFWriter(path, config.family)
    _metadata(writer, config)
    for name, tensor in separate(config, dict(model.named_parameters())).items():
        if name.split(".")[-2] in ("q_proj", "k_proj") and not config.rope_interleaved:
            tensor = interleave(tensor, config.head_dim)
        place = _place(name, config.family)
        kind = _format(tensor, place, format)
        writer.add_tensor(place, _encoded(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.context_size)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if config.family == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)


def _place(name: str, family: str) -> str:
    """`h.3.attn.c_proj.weight` -> `blk.3.attn_output.weight`."""
    *parts, kind = name.split(".")
    if parts == ["lm_head"]:
        return f"output.{kind}"
    if len(parts) == 1:
        return f"{NAMES[family][parts[0]]}.{kind}"
    return f"blk.{parts[1]}.{NAMES[family]['.'.join(parts[2:])]}.{kind}"


def _encoded(tensor: Tensor, kind: Format) -> np.ndarray:
    values = tensor.detach().float().cpu().numpy()
    return gguf.quantize(np.ascontiguousarray(values), kind)


def _format(tensor: Tensor, place: str, format: str) -> Format:
    """Vectors and positions are exact; a row that is no whole number of blocks is not quantised."""
    if tensor.dim() == 1 or place.startswith("position_embd"):
        return Format.F32
    return Format.F16 if format == "q8_0" and tensor.shape[1] % 32 else FORMATS[format]
