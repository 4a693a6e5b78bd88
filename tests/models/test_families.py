"""Every family against transformers, on random checkpoints with biases that are not zero and norms that are not one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.models.registry import by_model_type
from octavo.kernels.testing.numerics import assert_within

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
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 58, 9, 7, 9, 32, 38]
COMPANY = [[4, 8, 15, 16, 23, 42], [1] * 9]
BACKENDS = {"reference": 32, "cpu": 32, "triton": 2}  # and the number of tokens drawn


README = Path(__file__).parents[2] / "README.md"


def table() -> list[str]:
    """The lines of the README: a network, its `model_type`, and the GGUF architectures that its family reads."""
    lines = ["| network | `model_type` | backends | GGUF architectures of the family |", "| --- | --- | --- | --- |"]
    for name, (kind, _) in VARIANTS.items():
        family = by_model_type(kind)
        assert family is not None
        lines.append(f"| {name} | {kind} | {', '.join(BACKENDS)} | {', '.join(family.gguf_types) or '-'} |")
    return lines


def test_the_readme_lists_what_is_tested_here() -> None:
    text = README.read_text()
    listed = text.split("<!-- families -->\n")[1].split("<!-- /families -->")[0]
    assert listed == "".join(line + "\n" for line in table())


def make(name: str) -> Any:
    """A tiny network of transformers with random weights, none of them a default."""
    kind, more = VARIANTS[name]
    base = GPT if kind in ("gpt2", "gpt_bigcode") else TINY
    if kind in ("opt", "gpt_neox"):
        base = {name: value for name, value in base.items() if name != "num_key_value_heads"}
    config = transformers.AutoConfig.for_model(kind, **{**base, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        spread = 0.1 if parameter.dim() == 1 else 0.25
        parameter.data.add_(torch.randn_like(parameter) * spread)
    return model


@cache
def oracle(name: str) -> tuple[Any, list[int], torch.Tensor, torch.Tensor]:
    """The network, 32 greedy tokens, and its logits of them in float64 and in float32."""
    model = make(name)
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(32):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        twin = model(torch.tensor([ids]), use_cache=False).logits[0]
        true = model.double()(torch.tensor([ids]), use_cache=False).logits[0]
    return model.float(), ids[len(PROMPT) :], true, twin


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("family")
        oracle(name)[0].save_pretrained(folder)
        return folder

    return save


# A few networks meet every kind of attention, norm and rotary; `make families` has all of them on all backends.
OFTEN = ("Gemma 2", "Qwen 3", "Phi-2", "GLM-4", "StarCoder 2")
CASES = [
    pytest.param(name, backend, marks=[] if backend == "reference" or name in OFTEN else [pytest.mark.families])
    for name in VARIANTS
    for backend in BACKENDS
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_it_computes_what_transformers_computes(name: str, backend: str, saved: Any) -> None:
    _, tokens, true, twin = oracle(name)
    num_tokens = BACKENDS[backend]
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    limits = {"num_blocks": 64, "block_size": 4, "max_num_batched_tokens": 8, "max_model_len": 64}
    with LLM(saved(name), backend=backend, dtype="float32", **limits) as llm:
        company = COMPANY if backend != "triton" else []
        request = llm.generate([PROMPT, *company], params, use_tqdm=False)[0]
        assert request.outputs[0].token_ids == tokens[:num_tokens]
        ids = torch.tensor([PROMPT + tokens[: 32 if backend != "triton" else 1]])
        got = llm.model.loss(ids).logits[0]
    rows = ids.shape[1]
    assert_within(got, true[:rows], twin[:rows])
