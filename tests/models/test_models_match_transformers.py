"""Both families against transformers, which is the oracle in float64 and the twin in float32: logits, odd sizes."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.loading.loader import load_model
from octavo.kernels.ops import REFERENCE
from octavo.kernels.testing.numerics import assert_within

from checkpoints import gpt2_gguf_tensors, llama_gguf_tensors, save_gguf

transformers = pytest.importorskip("transformers")

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def gpt2(**options: Any) -> Any:
    sizes = {"vocab_size": 101, "n_positions": 24, "n_embd": 72, "n_layer": 2, "n_head": 3, "bos_token_id": 0}
    return transformers.GPT2Config(**{**sizes, "eos_token_id": 0, **options})


def llama(**options: Any) -> Any:
    sizes = {
        "vocab_size": 101, "max_position_embeddings": 64, "hidden_size": 48, "num_hidden_layers": 2,
        "intermediate_size": 80, "num_attention_heads": 4,
    }  # fmt: skip
    return transformers.LlamaConfig(**{**sizes, **options})


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2-head_dim-24": gpt2,
    "gpt2-head_dim-80": lambda: gpt2(n_embd=160, n_head=2),
    "gpt2-1-layer": lambda: gpt2(n_layer=1),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-inner": lambda: gpt2(n_inner=50, activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-3),
    "llama-head_dim-12": llama,
    "llama-head_dim-24-apart": lambda: llama(head_dim=24),
    "llama-head_dim-80": lambda: llama(head_dim=80, num_attention_heads=2),
    "llama-1-layer": lambda: llama(num_hidden_layers=1),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-3-query-heads-a-kv-head": lambda: llama(num_attention_heads=6, num_key_value_heads=2, head_dim=8),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
    "llama-rope-linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}),
    "llama-rope-llama3": lambda: llama(head_dim=16, rope_parameters=LLAMA3_ROPE),
    "llama-rope-dynamic": lambda: llama(rope_parameters=DYNAMIC_ROPE),
}

DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def random_model(config: Any) -> Any:
    """A transformers model whose every parameter is random, biases and norms too, so that none can be swapped."""
    torch.manual_seed(0)
    classes = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}
    model = classes[config.model_type](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1 if parameter.dim() == 1 else 0))
    return model


def token_ids(config: Any, length: int = 20) -> Tensor:
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


def assert_same_logits(path: Path, model: Any, ids: Tensor, length: int | None = None) -> None:
    """length: the longest sequence that the network is made for, where that is not its context."""
    loaded = load_model(path, REFERENCE, "float32", "cpu")
    if length is not None:
        loaded.model.set_length(length)
    with torch.no_grad():
        twin = model(ids).logits
        oracle = deepcopy(model).double()(ids).logits
    assert_within(loaded.model.loss(ids).logits, oracle, twin)


@pytest.mark.parametrize("name", MODELS)
def test_random_checkpoints(name: str, tmp_path: Path) -> None:
    model = random_model(MODELS[name]())
    model.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, model, token_ids(model.config))


@pytest.mark.parametrize("length", [16, 17, 40, 64])
def test_dynamic_scaling_is_that_of_the_longest_sequence(length: int, tmp_path: Path) -> None:
    """transformers scales by the length that a text has, here the engine's limit; up to the context neither does."""
    model = random_model(llama(max_position_embeddings=16, rope_parameters=DYNAMIC_ROPE))
    model.save_pretrained(tmp_path)
    ids = token_ids(model.config, length)
    assert_same_logits(tmp_path, model, ids, length)
    with LLM(tmp_path, dtype="float32", backend="reference", max_model_len=length, num_blocks=8) as llm:
        prompt = ids[0, :-1].tolist()
        drawn = (
            llm.generate(prompt, SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)[0].outputs[0].token_ids
        )
        rows = llm.model.loss(torch.tensor([prompt + drawn[:1]])).logits[0, -2:]
        assert drawn == rows.argmax(-1).tolist()


def test_dynamic_scaling_is_asked_for(tmp_path: Path) -> None:
    random_model(llama(max_position_embeddings=16, rope_parameters=DYNAMIC_ROPE)).save_pretrained(tmp_path)
    with LLM(tmp_path, dtype="float32", num_blocks=8) as llm:
        assert llm.config.max_model_len == 16
    with pytest.raises(ValueError, match=r"max_model_len \(65\) is more than the model's context of 64"):
        LLM(tmp_path, dtype="float32", num_blocks=8, max_model_len=65)


@pytest.mark.parametrize("name", ["gpt2-untied", "llama-3-query-heads-a-kv-head"])
def test_sharded_checkpoints(name: str, tmp_path: Path) -> None:
    model = random_model(MODELS[name]())
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(tmp_path, model, token_ids(model.config))


@pytest.mark.parametrize("name", ["gpt2-head_dim-24", "llama-head_dim-12"])
def test_checkpoints_without_a_head(name: str, tmp_path: Path) -> None:
    """GPT2Model and LlamaModel save no prefix; their logits are the tied head's."""
    config = MODELS[name]()
    config.tie_word_embeddings = True
    model = random_model(config)
    model.base_model.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, model, token_ids(config))


@pytest.mark.parametrize("rope", ["default", "llama3"])
def test_llama_gguf(rope: str, tmp_path: Path) -> None:
    """The converter's file: q and k rows reordered, llama3's stretch worked out in a tensor of its own."""
    stretch = {"rope_parameters": LLAMA3_ROPE} if rope == "llama3" else {}
    config = llama(num_attention_heads=6, num_key_value_heads=2, head_dim=16, **stretch)
    model = random_model(config)
    tensors = llama_gguf_tensors(model.state_dict(), config.num_attention_heads, config.num_key_value_heads)
    if rope == "llama3":
        plain = 1 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
        tensors["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq
    fields = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 48, "llama.feed_forward_length": 80, "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16, "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16, "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }  # fmt: skip
    assert_same_logits(save_gguf(tmp_path / "m.gguf", fields, tensors), model, token_ids(config))


def test_gpt2_gguf(tmp_path: Path) -> None:
    model = random_model(gpt2())
    tensors = gpt2_gguf_tensors({n: t for n, t in model.state_dict().items() if n != "lm_head.weight"})
    fields = {
        "general.architecture": "gpt2", "gpt2.block_count": 2, "gpt2.context_length": 24,
        "gpt2.embedding_length": 72, "gpt2.feed_forward_length": 288, "gpt2.attention.head_count": 3,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    assert_same_logits(save_gguf(tmp_path / "m.gguf", fields, tensors), model, token_ids(model.config))


@pytest.mark.model
def test_smollm2(smollm2_path: Path, transformers_smollm2: Any) -> None:
    """The same GGUF file through transformers' own reader."""
    ids = torch.tensor(
        [[504, 3575, 282, 4649, 314, 7042, 30, 2, 198, 1, 49151, 0], [1, 9690, 198, 2683, 359, *range(7)]]
    )
    assert_same_logits(smollm2_path, transformers_smollm2, ids)
