"""DecoderConfigs from files: the options that Llama-like families share, by the names they have in both formats.

A family's facts, what its files need not say, are keyword arguments; where an option of that kind is in the file, the
facts of the rotary positions (`rope_theta`, `partial_rotary`) are only defaults.
"""

from typing import Any, TypeVar

from octavo.gpt.models.config_reader import ConfigReader, TensorSource, gguf_shape
from octavo.gpt.models.decoder_config import DecoderConfig, LayerType
from octavo.gpt.models.rope_reader import rope_from_gguf, rope_from_hf
from octavo.gpt.quoting import quoted

Kind = TypeVar("Kind", bound=DecoderConfig)

ACTIVATIONS = {  # words of config.json -> the kit's
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu",
    "gelu": "gelu_erf", "relu": "relu", "relu2": "relu2",
}  # fmt: skip

HF_OPTIONS = {  # fields of the configuration -> options of config.json
    "vocab_size": "vocab_size", "context_size": "max_position_embeddings", "dim": "hidden_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim", "intermediate_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings", "qkv_bias": "attention_bias", "mlp_bias": "mlp_bias",
}  # fmt: skip


def decoder_from_hf(
    kind: type[Kind], reader: ConfigReader, options: dict[str, str] | None = None, **facts: Any
) -> Kind:
    """A configuration from config.json. options: fields that stand under other names; facts: as the module says.

    A fact that is also one of the options is the default where config.json leaves the option out; facts that have no
    option are as they are.
    """
    names = HF_OPTIONS | (options or {})
    dim, num_heads = reader.count(names["dim"]), reader.count(names["num_heads"])
    defaults = {
        "num_kv_heads": num_heads, "head_dim": max(1, dim // num_heads), "norm_eps": 1e-6, "tied_embeddings": False,
        "qkv_bias": False, "mlp_bias": False,
    } | facts  # fmt: skip
    fields = reader.read_fields(kind, names, **{name: defaults[name] for name in names if name in defaults})
    rope: dict[str, Any] = {}
    if facts.get("positions", "rotary") == "rotary":
        theta, share = facts.pop("rope_theta", 10000.0), facts.pop("partial_rotary", 1.0)
        rope = rope_from_hf(reader, fields["head_dim"], theta, share, facts.pop("rope_layer_type", ""))
    activation = _activation(reader, facts.get("activation", "silu"), facts.get("gated", True))
    return reader.make(kind, **{"o_bias": fields["qkv_bias"], **rope, **facts, **fields, "activation": activation})


def _activation(reader: ConfigReader, default: str, gated: bool) -> str:
    """The kit's word for `hidden_act`, or for `hidden_activation`, which Gemma 2 calls it."""
    name = "hidden_activation" if reader.get("hidden_activation") is not None else "hidden_act"
    words = {word: kit for word, kit in ACTIVATIONS.items() if not gated or kit in ("silu", "gelu")}
    if reader.get(name) is not None:
        reader.require_one_of(name, *words)
    return words.get(reader.get(name), default)


def whole_or_window(reader: ConfigReader) -> dict[str, Any]:
    """The fields of layers that all see `sliding_window` tokens; a window as long as the context changes nothing."""
    window = reader.get("sliding_window")
    if window is None or reader.count("sliding_window") >= reader.count("max_position_embeddings"):
        return {}
    return {"sliding_window": window}


def sliding_layers(reader: ConfigReader, period: int) -> list[bool]:
    """Which layers slide: as `layer_types` says, else all but the last of each `sliding_window_pattern` (or period)."""
    period = reader.count("sliding_window_pattern", reader.count("_sliding_window_pattern", period))
    return layer_words(reader) or [(i + 1) % period != 0 for i in range(reader.count("num_hidden_layers"))]


def layer_words(reader: ConfigReader) -> list[bool] | None:
    """Which layers slide, as `layer_types` says; None where config.json has none."""
    num_layers, words = reader.count("num_hidden_layers"), reader.get("layer_types")
    if words is None:
        return None
    known = ("sliding_attention", "full_attention")
    if not isinstance(words, list) or len(words) != num_layers or any(word not in known for word in words):
        raise ValueError(f"{reader.path}: layer_types must be {num_layers} of {known}, not {quoted(words)}")
    return [word == known[0] for word in words]


def local_and_global(slides: list[bool], has_window: bool) -> tuple[LayerType, ...]:
    """Sliding layers with a rotary table of their own; a window as long as the context changes only the table."""
    return tuple(LayerType(flag and has_window, "local" if flag else "global") for flag in slides)


def local_theta(reader: ConfigReader, default: float) -> float:
    """The rotary base of sliding layers: `rope_parameters` has one for each kind of layer since transformers 5."""
    parts = reader.get("rope_parameters", {})
    local = parts.get("sliding_attention") if isinstance(parts, dict) else None
    return ConfigReader(reader.path, local if isinstance(local, dict) else {}).number("rope_theta", default)


def decoder_from_gguf(kind: type[Kind], reader: ConfigReader, file: TensorSource, **facts: Any) -> Kind:
    """A configuration from a GGUF file's metadata and its optional tensors; facts: as the module says.

    Biases are there where their tensors are. Scales, caps and the window are the keys' that llama.cpp has for them.
    """
    shape = gguf_shape(reader, file)
    reader.require_one_of("expert_count", 0)
    reader.require_one_of("attention.value_length", shape["head_dim"])
    has = file.tensors.__contains__
    norm = "layer_norm_rms" if facts.get("norm", "rms") == "rms" else "layer_norm"
    fields = shape | {
        "norm_eps": reader.number(f"attention.{norm}_epsilon", 1e-5),
        "qkv_bias": has("blk.0.attn_q.bias") or has("blk.0.attn_qkv.bias"),
        "o_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
        "head_bias": has("output.bias"),
        "attention_scale": reader.number("attention.scale") if reader.get("attention.scale") else 0.0,
    }
    if facts.get("positions", "rotary") == "rotary":
        fields |= rope_from_gguf(reader, file, shape["head_dim"], facts.pop("rope_theta", 10000.0))
    return reader.make(kind, **{**fields, **facts})


def gguf_window(reader: ConfigReader) -> int:
    """`attention.sliding_window`; 0 where it is absent or changes nothing."""
    window = reader.get("attention.sliding_window", 0)
    if window in (0, None):
        return 0
    window = reader.count("attention.sliding_window")
    return 0 if window >= reader.count("context_length") else window
