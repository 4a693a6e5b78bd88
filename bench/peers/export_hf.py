"""Our network as transformers', around the same weights: for random weights, and for CTranslate2's converter."""

from typing import Any

import transformers
from torch import Tensor

from octavo.bench.peers.sources import separate, turn_halves
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig

MATRICES = ("c_attn", "c_proj", "c_fc")  # of GPT-2; transformers keeps them transposed


def network(model: Model) -> Any:
    """The same network in transformers' classes; it shares the weights' memory where the layout is the same."""
    transformers.utils.logging.disable_progress_bar()
    weights = renamed(model.config, dict(model.named_parameters()))
    dtype = next(iter(weights.values())).dtype
    twin = transformers.AutoModelForCausalLM.from_config(configuration(model.config), dtype=dtype)
    missing, unexpected = twin.load_state_dict(weights, strict=False, assign=True)
    twin.tie_weights()
    if unexpected or [name for name in missing if not (name == "lm_head.weight" and model.config.tied_head)]:
        raise ValueError(f"transformers names its weights otherwise: {[*missing, *unexpected][:3]}")
    return twin.eval()


def configuration(config: ModelConfig) -> Any:
    """transformers' configuration of the same network."""
    ends = {"bos_token_id": config.bos_id, "eos_token_id": None, "tie_word_embeddings": config.tied_head}
    if config.family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.context_size, n_embd=config.dim,
            n_layer=config.num_layers, n_head=config.num_heads, n_inner=config.hidden_dim,
            layer_norm_epsilon=config.norm_eps, **ends,
        )  # fmt: skip
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size, max_position_embeddings=config.context_size, hidden_size=config.dim,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, intermediate_size=config.hidden_dim,
        rms_norm_eps=config.norm_eps, attention_bias=config.attention_bias, mlp_bias=config.mlp_bias,
        rope_parameters={"rope_theta": config.rope_theta, **_scaling(config)}, **ends,
    )  # fmt: skip


def _scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    if scaling.kind == "factors":
        raise ValueError("rotary factors of a GGUF file have no counterpart in transformers' configuration")
    return {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def renamed(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names and in its layout."""
    found = {}
    for name, tensor in separate(config, weights).items():
        *_, module, kind = name.split(".")
        if config.family == "gpt2" and kind == "weight" and module in MATRICES:
            tensor = tensor.T.contiguous()
        if module in ("q_proj", "k_proj") and config.rope_interleaved:
            tensor = turn_halves(tensor, config.head_dim)
        prefix = "" if name.startswith("lm_head") else "transformer." if config.family == "gpt2" else "model."
        found[prefix + name] = tensor
    return found
