"""Tiny networks of transformers with random weights, one of every kind that the families read, and their answers."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

TINY = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_embd": 32, "n_inner": 40, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61,
       "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SLIDING = {"sliding_window": 5}
LONG = [1.0 + i / 4 for i in range(4)]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model_type, and what the configuration adds to TINY
    "GPT-2": ("gpt2", {}),
    "Llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama 3.1": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5,
                            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    "Llama, YaRN": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                              "original_max_position_embeddings": 16}}),
    "Mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "Mistral, sliding": ("mistral", SLIDING),
    "Qwen 2": ("qwen2", {}),
    "Qwen 2, sliding": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **SLIDING}),
    "Qwen 3": ("qwen3", {"head_dim": 16}),
    "SmolLM3": ("smollm3", {"num_hidden_layers": 4}),
    "Arcee": ("arcee", {}),
    "Granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7,
                            "logits_scaling": 2.0}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"num_hidden_layers": 4, **SLIDING}),
    "Phi-2": ("phi", {}),
    "Phi-3": ("phi3", SLIDING),
    "Phi-3, LongRoPE": ("phi3", {"original_max_position_embeddings": 8, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "long_factor": LONG, "short_factor": [1.0] * 4,
        "partial_rotary_factor": 1.0, "original_max_position_embeddings": 8}}),
    "Gemma": ("gemma", {"head_dim": 8}),
    "Gemma 2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0,
                           "final_logit_softcapping": 3.0, **SLIDING}),
    "Gemma 3": ("gemma3_text", {"head_dim": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 9, **SLIDING}),
    "Nemotron": ("nemotron", {"head_dim": 8}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "StarCoder 2": ("starcoder2", SLIDING),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-NeoX, serial": ("gpt_neox", {"use_parallel_residual": False}),
    "StableLM": ("stablelm", {"use_qkv_bias": True}),
    "StableLM, parallel": ("stablelm", {"use_parallel_residual": True}),
    "GLM": ("glm", {"head_dim": 8}),
    "GLM-4": ("glm4", {"head_dim": 8, "num_hidden_layers": 2}),
    "Command R": ("cohere", {}),
    "Command R7B": ("cohere2", {"head_dim": 8, "num_hidden_layers": 4, **SLIDING}),
    "OPT": ("opt", {"ffn_dim": 40, "word_embed_proj_dim": 32}),
}  # fmt: skip


def make(name: str, **changes: Any) -> Any:
    """A tiny network of transformers with random weights, none of them a default; changes are to its configuration."""
    kind, more = VARIANTS[name]
    base = GPT if kind in ("gpt2", "gpt_bigcode") else TINY
    if kind in ("opt", "gpt_neox"):
        base = {name: value for name, value in base.items() if name != "num_key_value_heads"}
    config = transformers.AutoConfig.for_model(kind, **{**base, **more, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        spread = 0.1 if parameter.dim() == 1 else 0.25
        parameter.data.add_(torch.randn_like(parameter) * spread)
    return model


def answers(model: Any, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Greedy tokens after the prompt, and the logits of both `[tokens, vocab_size]` in float64 and in float32."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        twin = model(torch.tensor([ids]), use_cache=False).logits[0]
        true = model.double()(torch.tensor([ids]), use_cache=False).logits[0]
    model.float()
    return ids[len(prompt) :], true, twin
