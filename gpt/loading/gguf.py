"""A GGUF file as a Checkpoint. Llama keeps llama.cpp's order of q and k rows: rotary pairs are neighbours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.gpt.loading.checkpoint import Checkpoint, Names
from octavo.gpt.loading.gguf_file import GGUFFile, open_gguf
from octavo.gpt.models.config import ModelConfig, RopeScaling
from octavo.gpt.models.config_reader import Options

NAMES: dict[str, Names] = {
    "gpt2": {
        "wte": ("token_embd",),
        "wpe": ("position_embd",),
        "h.{}.ln_1": ("blk.{}.attn_norm",),
        "h.{}.attn.c_attn": ("blk.{}.attn_qkv",),
        "h.{}.attn.c_proj": ("blk.{}.attn_output",),
        "h.{}.ln_2": ("blk.{}.ffn_norm",),
        "h.{}.mlp.c_fc": ("blk.{}.ffn_up",),
        "h.{}.mlp.c_proj": ("blk.{}.ffn_down",),
        "ln_f": ("output_norm",),
        "lm_head": ("output",),
    },
    "llama": {
        "embed_tokens": ("token_embd",),
        "layers.{}.input_layernorm": ("blk.{}.attn_norm",),
        "layers.{}.self_attn.qkv_proj": ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"),
        "layers.{}.self_attn.o_proj": ("blk.{}.attn_output",),
        "layers.{}.post_attention_layernorm": ("blk.{}.ffn_norm",),
        "layers.{}.mlp.gate_up_proj": ("blk.{}.ffn_gate", "blk.{}.ffn_up"),
        "layers.{}.mlp.down_proj": ("blk.{}.ffn_down",),
        "norm": ("output_norm",),
        "lm_head": ("output",),
    },
}

ROPE_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by: llama3's stretch, worked out

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def open_gguf_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint and the file's metadata. ValueError names the file, and the key or tensor at fault."""
    file = open_gguf(path)
    family = file.metadata.get("general.architecture")
    if family not in tuple(NAMES):
        raise ValueError(f"{path}: architecture {family} is not supported (only {', '.join(NAMES)})")
    tensors = {name: (file, name) for name in file.tensors}
    if family == "llama":
        tensors.pop(ROPE_FACTORS, None)  # read into the configuration
    return Checkpoint(path, _config(file, family), tensors, NAMES[family]), file.metadata


def _config(file: GGUFFile, family: str) -> ModelConfig:
    """The network that the metadata and the presence of optional tensors describe."""
    options = Options(file.path, file.metadata, f"{family}.")
    vocabulary = Options(file.path, file.metadata, "tokenizer.ggml.")
    dim, num_heads = options.count("embedding_length"), options.count("attention.head_count")
    shape: dict[str, Any] = {
        "vocab_size": options.count("vocab_size", _num_tokens(file)),
        "context_size": options.count("context_length"),
        "dim": dim,
        "num_layers": options.count("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": options.count("attention.head_count_kv", num_heads),
        "head_dim": options.count("attention.key_length", dim // num_heads),
        "hidden_dim": options.count("feed_forward_length"),
        "tied_head": "output.weight" not in file.tensors,
    }
    shape |= _llama(file, options, shape["head_dim"]) if family == "llama" else _gpt2(options)
    try:
        config = ModelConfig(family=family, **shape)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    bos = vocabulary.ids("bos_token_id", config.vocab_size)
    ends = [token_id for key in END_KEYS for token_id in vocabulary.ids(key, config.vocab_size)]
    return replace(config, bos_id=bos[0] if bos else None, eos_ids=tuple(dict.fromkeys(ends)))


def _num_tokens(file: GGUFFile) -> int | None:
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else None


def _gpt2(options: Options) -> dict[str, Any]:
    return {"norm_eps": options.number("attention.layer_norm_epsilon", 1e-5)}


def _llama(file: GGUFFile, options: Options, head_dim: int) -> dict[str, Any]:
    options.refuse_other("expert_count", 0)
    options.refuse_other("attention.value_length", head_dim)
    options.refuse_other("rope.dimension_count", head_dim)
    return {
        "norm_eps": options.number("attention.layer_norm_rms_epsilon", 1e-5),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "rope_theta": options.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, options, head_dim),
        "rope_interleaved": True,
    }


def _rope_scaling(file: GGUFFile, options: Options, head_dim: int) -> RopeScaling | None:
    options.refuse_other("rope.scale_linear", 1.0)
    if ROPE_FACTORS not in file.tensors:
        options.refuse_other("rope.scaling.type", "none", "linear")
        linear = options.get("rope.scaling.type") == "linear"
        return RopeScaling("linear", options.number("rope.scaling.factor")) if linear else None
    options.refuse_other("rope.scaling.type", "none")
    if file.tensors[ROPE_FACTORS].shape != (head_dim // 2,):
        raise ValueError(f"{file.path}: tensor {ROPE_FACTORS} must have {head_dim // 2} values, one a frequency")
    factors = file.read(ROPE_FACTORS)
    if not bool((factors > 0).all()):
        raise ValueError(f"{file.path}: tensor {ROPE_FACTORS} must hold positive numbers")
    return RopeScaling("factors", factors=tuple(factors.tolist()))
