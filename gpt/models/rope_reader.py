"""What model files say of rotary positions: config.json's `rope_parameters` or `rope_scaling`, GGUF's metadata."""

import math
from typing import Any

from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.rope import RopeScaling
from octavo.gpt.quoting import quoted

GGUF_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by: llama3's stretch, worked out
GGUF_LONG, GGUF_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # longrope's factors
GGUF_CONSTANTS = (GGUF_FACTORS, GGUF_LONG, GGUF_SHORT)

KINDS = {"default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn", "longrope": "longrope",
         "su": "longrope", "dynamic": "dynamic"}  # fmt: skip


def rope_from_hf(
    reader: ConfigReader, head_dim: int, theta: float = 10000.0, partial: float = 1.0, layer_type: str = ""
) -> dict[str, Any]:
    """The rotary fields of a DecoderConfig that config.json states: `rope_theta`, `rope_scaling`, `rotary_dim`.

    They stand in `rope_parameters` since transformers 5, in `rope_scaling` and beside it before. theta and partial are
    the family's defaults; layer_type names the part of `rope_parameters` where there is one for each kind of layer.
    """
    rope = _rope_table(reader, layer_type)
    share = rope.number("partial_rotary_factor", partial)
    if share > 1:
        raise ValueError(f"{reader.path}: partial_rotary_factor must be at most 1, not {share}")
    rotary_dim = int(head_dim * share)
    return {
        "rope_theta": rope.number("rope_theta", theta),
        "rope_scaling": _scaling_from_hf(rope, reader, rotary_dim),
        "rotary_dim": rotary_dim if rotary_dim != head_dim else 0,
    }


def _rope_table(reader: ConfigReader, layer_type: str) -> ConfigReader:
    old, new = reader.get("rope_scaling", {}), reader.get("rope_parameters", {})
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise ValueError(f"{reader.path}: rope_parameters and rope_scaling must be objects")
    new = new.get(layer_type, new) or {}
    if not isinstance(new, dict):
        raise ValueError(f"{reader.path}: rope_parameters must hold an object for {layer_type}")
    beside = {name: reader.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    beside["partial_rotary_factor"] = beside["partial_rotary_factor"] or reader.get("rotary_pct")
    beside["rope_theta"] = beside["rope_theta"] or reader.get("rotary_emb_base")
    table = {**beside, **old, **{name: value for name, value in new.items() if value is not None}}
    return ConfigReader(reader.path, {"rope_type": table.get("type"), **table})


def _scaling_from_hf(rope: ConfigReader, reader: ConfigReader, rotary_dim: int) -> RopeScaling | None:
    rope.require_one_of("rope_type", *KINDS)
    rope.require_one_of("mrope_section", None)
    kind = KINDS[rope.get("rope_type", "default")]
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    context = reader.count("max_position_embeddings")
    original = reader.count("original_max_position_embeddings", rope.count("original_max_position_embeddings", context))
    return {"llama3": _llama3, "yarn": _yarn, "longrope": _longrope, "dynamic": _dynamic}[kind](
        rope, context, original, rotary_dim
    )


def _llama3(rope: ConfigReader, context: int, original: int, rotary_dim: int) -> RopeScaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise ValueError(f"{rope.path}: low_freq_factor ({low}) must be below high_freq_factor ({high})")
    return RopeScaling("llama3", rope.number("factor"), low, high, original)


def _dynamic(rope: ConfigReader, context: int, original: int, rotary_dim: int) -> RopeScaling:
    return RopeScaling("dynamic", rope.number("factor"), original_context=context)


def _yarn(rope: ConfigReader, context: int, original: int, rotary_dim: int) -> RopeScaling:
    factor = rope.number("factor", context / original)
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        attention_factor=rope.number("attention_factor", _yarn_attention(rope, factor)),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )


def _yarn_attention(rope: ConfigReader, factor: float) -> float:
    """YaRN's own advice, or DeepSeek's quotient of two."""

    def advised(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return advised(rope.number("mscale")) / advised(rope.number("mscale_all_dim"))
    return advised(1.0)


def _longrope(rope: ConfigReader, context: int, original: int, rotary_dim: int) -> RopeScaling:
    factor = rope.number("factor", context / original)
    advised = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return RopeScaling(
        "longrope",
        original_context=original,
        factors=_numbers(rope, "long_factor", rotary_dim // 2),
        short_factors=_numbers(rope, "short_factor", rotary_dim // 2),
        attention_factor=rope.number("attention_factor", advised),
    )


def _numbers(rope: ConfigReader, name: str, length: int) -> tuple[float, ...]:
    values = rope.get(name)
    numbers = isinstance(values, list) and all(type(x) in (int, float) and 0 < x < float("inf") for x in values)
    if not numbers or len(values) != length:
        raise ValueError(f"{rope.path}: {name} must be {length} positive numbers, not {quoted(values)}")
    return tuple(map(float, values))


def rope_from_gguf(reader: ConfigReader, file: TensorSource, head_dim: int, theta: float = 10000.0) -> dict[str, Any]:
    """The same fields as a GGUF file's metadata, and its tensors of factors, state them."""
    rotary_dim = reader.count("rope.dimension_count", head_dim)
    return {
        "rope_theta": reader.number("rope.freq_base", theta),
        "rope_scaling": _scaling_from_gguf(reader, file, rotary_dim),
        "rotary_dim": rotary_dim if rotary_dim != head_dim else 0,
    }


def _scaling_from_gguf(reader: ConfigReader, file: TensorSource, rotary_dim: int) -> RopeScaling | None:
    reader.require_one_of("rope.scale_linear", 1.0)
    reader.require_one_of("rope.scaling.type", "none", "linear", "yarn", "longrope")
    default = "none" if reader.get("rope.scaling.factor") is None else "linear"  # as llama.cpp reads a factor alone
    kind = reader.get("rope.scaling.type", default)
    if GGUF_LONG in file.tensors:
        return _longrope_from_gguf(reader, file, rotary_dim)
    if GGUF_FACTORS in file.tensors:
        if kind != "none":
            raise ValueError(f"{reader.path}: {kind} rotary scaling beside tensor {GGUF_FACTORS} is not supported")
        return RopeScaling("factors", factors=_tensor(reader, file, GGUF_FACTORS, rotary_dim))
    if kind == "linear":
        return RopeScaling("linear", reader.number("rope.scaling.factor"))
    return _yarn_from_gguf(reader) if kind == "yarn" else None


def _yarn_from_gguf(reader: ConfigReader) -> RopeScaling:
    factor = reader.number("rope.scaling.factor")
    advised = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        original_context=reader.count("rope.scaling.original_context_length", reader.count("context_length")),
        attention_factor=reader.number(
            "rope.scaling.yarn_attn_factor", advised * reader.number("rope.scaling.attn_factor", 1.0)
        ),
        beta_fast=reader.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=reader.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _longrope_from_gguf(reader: ConfigReader, file: TensorSource, rotary_dim: int) -> RopeScaling:
    return RopeScaling(
        "longrope",
        original_context=reader.count("rope.scaling.original_context_length", reader.count("context_length")),
        factors=_tensor(reader, file, GGUF_LONG, rotary_dim),
        short_factors=_tensor(reader, file, GGUF_SHORT, rotary_dim),
        attention_factor=reader.number("rope.scaling.attn_factor", 1.0),
    )


def _tensor(reader: ConfigReader, file: TensorSource, name: str, rotary_dim: int) -> tuple[float, ...]:
    """The factors that a small tensor of the file holds, one a frequency."""
    if name not in file.tensors:
        raise ValueError(f"{reader.path}: tensor {name} is missing")
    if file.tensors[name].shape != (rotary_dim // 2,):
        raise ValueError(f"{reader.path}: tensor {name} must have {rotary_dim // 2} values, one a frequency")
    factors = file.read(name)
    if not bool((factors > 0).all()):
        raise ValueError(f"{reader.path}: tensor {name} must hold positive numbers")
    return tuple(factors.tolist())
