"""Tiny checkpoints in the two formats, written as transformers and llama.cpp lay them out, with seeded weights."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.kernels.weights import BLOCK_FORMATS, BlockWeight, Weight, quantise

GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 31, "n_positions": 10, "n_embd": 12,
    "n_layer": 2, "n_head": 3, "activation_function": "gelu_new", "bos_token_id": 30, "eos_token_id": 30,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 29, "max_position_embeddings": 16,
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6,
    "intermediate_size": 20, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip


def gpt2_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a GPT-2 checkpoint: matrices lie [in_features, out_features]."""
    dim, vocab, positions = config["n_embd"], config["vocab_size"], config["n_positions"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab, dim), "wpe.weight": (positions, dim)}
    for i in range(config["n_layer"]):
        for name, width_in, width_out in (
            ("attn.c_attn", dim, 3 * dim),
            ("attn.c_proj", dim, dim),
            ("mlp.c_fc", dim, 4 * dim),
            ("mlp.c_proj", 4 * dim, dim),
        ):
            shapes[f"h.{i}.{name}.weight"] = (width_in, width_out)
            shapes[f"h.{i}.{name}.bias"] = (width_out,)
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[f"h.{i}.{name}"] = (dim,)
    return shapes | {"ln_f.weight": (dim,), "ln_f.bias": (dim,)}


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a Llama checkpoint with an untied head: matrices lie [out_features, in_features]."""
    dim, vocab, hidden = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (dim,),
            f"{layer}.post_attention_layernorm.weight": (dim,),
            f"{layer}.self_attn.q_proj.weight": (rows, dim),
            f"{layer}.self_attn.k_proj.weight": (kv_rows, dim),
            f"{layer}.self_attn.v_proj.weight": (kv_rows, dim),
            f"{layer}.self_attn.o_proj.weight": (dim, rows),
            f"{layer}.mlp.gate_proj.weight": (hidden, dim),
            f"{layer}.mlp.up_proj.weight": (hidden, dim),
            f"{layer}.mlp.down_proj.weight": (dim, hidden),
        }
    return shapes | {"lm_head.weight": (vocab, dim)}


def random_tensors(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def gpt2_tensors() -> dict[str, Tensor]:
    return random_tensors(gpt2_shapes(GPT2))


def llama_tensors() -> dict[str, Tensor]:
    return random_tensors(llama_shapes(LLAMA))


def save_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], num_shards: int = 0) -> Path:
    """A Hugging Face folder: config.json and model.safetensors, or num_shards shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if not num_shards:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        names = list(tensors)[i::num_shards]
        save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save_gguf(
    path: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """A GGUF file; matrices whose rows divide into blocks are stored in the given type, the rest as F32.

    kinds: other types, by a part of the name.
    """
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            add[type(value)](key, value) if type(value) in add else writer.add_array(key, value)
    for name, tensor in tensors.items():
        own = next((each for part, each in (kinds or {}).items() if part in name), kind)
        quantised = gguf.GGMLQuantizationType[own]
        fits = tensor.dim() > 1 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[quantised][0] == 0
        stored = quantised if fits else gguf.GGMLQuantizationType.F32
        if stored.name.endswith("_K"):  # random blocks, which the package cannot make of values
            data = random_blocks(*tensor.shape, stored.name.lower()).blocks.numpy()
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(tensor.float().numpy()), stored)
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def neighbours(weight: Tensor, num_heads: int) -> Tensor:
    """q or k rows in llama.cpp's order: the halves of each head interleaved."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


LLAMA_GGUF: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 16, "llama.embedding_length": 12,
    "llama.feed_forward_length": 20, "llama.attention.head_count": 3, "llama.attention.head_count_kv": 1,
    "llama.attention.key_length": 6, "llama.attention.value_length": 6, "llama.rope.dimension_count": 6,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip

_LLAMA_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GPT2_GGUF_NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "h.": "blk.", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "ln_f": "output_norm",
}  # fmt: skip


def llama_gguf_tensors(tensors: Mapping[str, Tensor], num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """A Llama checkpoint's tensors as llama.cpp's converter names and orders them."""
    result = {}
    for name, tensor in tensors.items():
        heads = {"q": num_heads, "k": num_kv_heads}.get(name.rsplit(".", 2)[-2][0] if "self_attn" in name else "", 0)
        result[_renamed(name, _LLAMA_GGUF_NAMES)] = neighbours(tensor, heads) if heads else tensor
    return result


def gpt2_gguf_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A GPT-2 checkpoint's tensors as llama.cpp's converter names and turns them."""
    return {
        _renamed(name, _GPT2_GGUF_NAMES): tensor.T if ".c_" in name and tensor.dim() == 2 else tensor
        for name, tensor in ((name.removeprefix("transformer."), tensor) for name, tensor in tensors.items())
    }


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def raw_safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# Bytes of a block where a float16 begins, and a size of it that gives values as small as a network's.
SCALES = {
    "q5_0": ((0,), 1e-2),
    "q5_1": ((0, 2), 1e-2),
    "q4_k": ((0, 2), 1e-4),
    "q5_k": ((0, 2), 1e-4),
    "q6_k": ((208,), 1e-4),
}


def random_blocks(out_features: int, in_features: int, format: str) -> Weight:
    """A weight of normal numbers, or of random bits with small scales where the package cannot quantise.

    in_features grows to whole blocks.
    """
    values, size, from_dense = BLOCK_FORMATS[format]
    blocks = -(-in_features // values)
    if from_dense:
        return quantise(torch.randn(out_features, values * blocks), format)
    raw = torch.randint(0, 256, (out_features, blocks, size), dtype=torch.uint8)
    places, scale = SCALES[format]
    for place in places:
        raw[..., place : place + 2] = (scale * torch.randn(out_features, blocks, 1)).half().view(torch.uint8)
    return BlockWeight(raw.flatten(1), format)
