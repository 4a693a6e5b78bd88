"""GGUF files of the families, by the gguf package's names and llama.cpp's keys, against transformers."""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from networks import answers, make
from torch import Tensor

from octavo.gpt import LLM, SamplingParams
from octavo.kernels.testing.numerics import assert_within

from checkpoints import neighbours, save_gguf

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 58, 9]
NUM_TOKENS = 8
HEADS, KV_HEADS = 4, 2

WINDOW = {"attention.sliding_window": 5}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
SCALES = {"embedding_scale": 3.0, "attention.scale": 0.3, "residual_scale": 0.7, "logit_scale": 2.0}
SCALAR = {"query_pre_attn_scalar": 8}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # architecture, its own keys, changes to the network
    "Llama": ("llama", {}, {}),
    "Granite": ("granite", SCALES, {}),
    "Qwen 2": ("qwen2", {}, {}),
    "Qwen 3": ("qwen3", {}, {}),
    "OLMo 2": ("olmo2", {}, {}),
    "Phi-2": ("phi2", {}, {}),
    "Phi-3": ("phi3", WINDOW, {}),
    "Gemma": ("gemma", {}, {}),
    "Gemma 2": ("gemma2", WINDOW | CAPS, SCALAR),
    "Nemotron": ("nemotron", {}, {}),
    "StarCoder 2": ("starcoder2", WINDOW, {}),
    "GPT-NeoX": ("gptneox", {"use_parallel_residual": True}, {}),
    "GPT-NeoX, serial": ("gptneox", {"use_parallel_residual": False}, {}),
    "StableLM": ("stablelm", {}, {}),
    "GLM": ("chatglm", {}, {}),
    "GLM-4": ("glm4", {}, {}),
    "Command R": ("command-r", {"logit_scale": 0.0625}, {}),
}
NEIGHBOURS = {"llama", "granite"}  # architectures whose rows of q and k llama.cpp reorders
NORMS_PLUS_ONE = {"gemma", "gemma2", "nemotron"}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")


def keys(config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of every network."""
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    eps = next(name for name in EPSILONS if hasattr(config, name))
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": rope["rope_theta"],
        f"attention.layer_norm_{'rms_' if eps.startswith('rms') else ''}epsilon": getattr(config, eps),
    }


def stored(name: str, tensor: Tensor, architecture: str) -> Tensor:
    """A tensor of transformers as llama.cpp's converter stores it."""
    if architecture in NORMS_PLUS_ONE and name.endswith("norm.weight"):
        return tensor + 1
    if architecture in NEIGHBOURS and (".q_proj." in name or ".k_proj." in name):
        return neighbours(tensor, HEADS if ".q_proj." in name else KV_HEADS)
    if "query_key_value" in name:  # q, k and v of each head lie together
        return tensor.unflatten(0, (HEADS, 3, -1)).transpose(0, 1).flatten(0, 2)
    return tensor


def tensors(model: Any, architecture: str) -> dict[str, Tensor]:
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    result = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): stored(name, tensor, architecture)
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        result.pop("output.weight", None)
    return {name: tensor for name, tensor in result.items() if name is not None}


def fused(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v of each layer as one tensor, as the converter's --fuse-qkv stores them."""
    result = {name: tensor for name, tensor in parts.items() if not any(f".attn_{part}." in name for part in "qkv")}
    for name in parts:
        if ".attn_q." in name:
            stack = [parts[name.replace("attn_q", f"attn_{part}")] for part in "qkv"]
            result[name.replace("attn_q", "attn_qkv")] = torch.cat(stack)
    return result


@cache
def oracle(name: str) -> tuple[Any, list[int], Tensor, Tensor]:
    model = make(name, **CASES[name][2])
    return model, *answers(model, PROMPT, NUM_TOKENS)


@pytest.mark.parametrize("fuse", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_transformers_computes(name: str, fuse: bool, tmp_path: Path) -> None:
    model, tokens, true, twin = oracle(name)
    architecture, own, _ = CASES[name]
    metadata = {f"{architecture}.{key}": value for key, value in (keys(model.config) | own).items()}
    parts = tensors(model, architecture)
    path = save_gguf(
        tmp_path / "model.gguf", {"general.architecture": architecture, **metadata}, fused(parts) if fuse else parts
    )
    limits = {"num_blocks": 16, "block_size": 4, "max_model_len": 64}
    with LLM(path, tokenizer=None, backend="reference", dtype="float32", **limits) as llm:
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        request = llm.generate([PROMPT], params, use_tqdm=False)[0]
        logits = llm.model.loss(torch.tensor([PROMPT + tokens])).logits[0]
    assert_within(logits, true, twin)
    assert request.outputs[0].token_ids == tokens
