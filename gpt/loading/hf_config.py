"""config.json -> ModelConfig. What the network cannot do is refused by the option's name, never ignored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.gpt.models.config import ModelConfig, RopeScaling
from octavo.gpt.models.config_reader import Options, as_list

ARCHITECTURES = {
    "GPT2LMHeadModel": "gpt2",
    "GPT2Model": "gpt2",
    "LlamaForCausalLM": "llama",
    "LlamaModel": "llama",
}

GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")

# The values that we run, of options that change what a network computes. An option left out has the first.
SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": GELU_TANH,
        "add_cross_attention": (False,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"),
        "sliding_window": (None,),
        "quantization_config": (None,),
    },
}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def read_config(folder: Path) -> ModelConfig:
    """The network that a Hugging Face folder describes, end-of-text ids from generation_config.json where it is."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (a GGUF model is named by its file)")
    options = Options(path, read_json(path))
    generation = folder / "generation_config.json"
    wishes = read_json(generation) if generation.is_file() else {}
    family = _family(path, options.table)
    for name, supported in SUPPORTED[family].items():
        options.refuse_other(name, *supported)
    shape = _gpt2(options) if family == "gpt2" else _llama(options)
    ends = options if wishes.get("eos_token_id") is None else Options(generation, wishes)
    try:
        config = ModelConfig(family=family, **shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    bos = options.ids("bos_token_id", config.vocab_size)
    return replace(config, bos_id=bos[0] if bos else None, eos_ids=ends.ids("eos_token_id", config.vocab_size))


def _family(path: Path, table: dict[str, Any]) -> str:
    for architecture in as_list(table.get("architectures")):
        if architecture not in tuple(ARCHITECTURES):
            raise ValueError(f"{path}: architecture {architecture} is not supported (only {', '.join(ARCHITECTURES)})")
    named = [ARCHITECTURES[architecture] for architecture in as_list(table.get("architectures"))]
    named += as_list(table.get("model_type"))
    if not named or any(family not in tuple(SUPPORTED) or family != named[0] for family in named):
        raise ValueError(
            f"{path}: model_type {table.get('model_type')!r} is not supported (only {', '.join(SUPPORTED)})"
        )
    return named[0]


def _gpt2(options: Options) -> dict[str, Any]:
    dim, num_heads = options.count("n_embd"), options.count("n_head")
    return {
        "vocab_size": options.count("vocab_size"),
        "context_size": options.count("n_positions"),
        "dim": dim,
        "num_layers": options.count("n_layer"),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": dim // num_heads,
        "hidden_dim": options.count("n_inner", 4 * dim),
        "norm_eps": options.number("layer_norm_epsilon", 1e-5),
        "tied_head": options.flag("tie_word_embeddings", True),
    }


def _llama(options: Options) -> dict[str, Any]:
    dim, num_heads = options.count("hidden_size"), options.count("num_attention_heads")
    rope = Options(options.path, _rope(options))
    return {
        "vocab_size": options.count("vocab_size"),
        "context_size": options.count("max_position_embeddings"),
        "dim": dim,
        "num_layers": options.count("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": options.count("num_key_value_heads", num_heads),
        "head_dim": options.count("head_dim", dim // num_heads),
        "hidden_dim": options.count("intermediate_size"),
        "norm_eps": options.number("rms_norm_eps", 1e-6),
        "tied_head": options.flag("tie_word_embeddings", False),
        "attention_bias": options.flag("attention_bias", False),
        "mlp_bias": options.flag("mlp_bias", False),
        "rope_theta": rope.number("rope_theta", 10000.0),
        "rope_scaling": _rope_scaling(rope),
    }


def _rope(options: Options) -> dict[str, Any]:
    """The rotary options, in `rope_parameters` since transformers 5, in `rope_scaling` and beside it before."""
    old, new = options.get("rope_scaling", {}), options.get("rope_parameters", {})
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise ValueError(f"{options.path}: rope_parameters and rope_scaling must be objects")
    beside = {name: options.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    table = {**beside, **old, **new}
    return {"rope_type": table.get("type"), **table}


def _rope_scaling(rope: Options) -> RopeScaling | None:
    rope.refuse_other("partial_rotary_factor", 1)
    rope.refuse_other("rope_type", "default", "linear", "llama3")
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise ValueError(f"{rope.path}: low_freq_factor ({low}) must be below high_freq_factor ({high})")
    return RopeScaling("llama3", rope.number("factor"), low, high, rope.count("original_max_position_embeddings"))
