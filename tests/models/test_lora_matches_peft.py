"""LoRA adapters against peft's own networks with the adapter merged into the weights, on every backend."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.gpt.loading.adapter import load_adapter
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import dense_batch
from octavo.gpt.models.lora import Adapter, adapted
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE
from octavo.kernels.testing.numerics import assert_within

from checkpoints import llama_gguf_tensors, save_gguf

peft = pytest.importorskip("peft", reason="pip install --no-deps peft")
transformers = pytest.importorskip("transformers")

ALL = slice(None)

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=101, n_positions=24, n_embd=48, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=101, max_position_embeddings=64, hidden_size=48, num_hidden_layers=2, intermediate_size=80,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12,
    ),
}  # fmt: skip
EVERYTHING = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": EVERYTHING["gpt2"], "fan_in_fan_out": True}),
    "gpt2-attention": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True}),
    "llama": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": EVERYTHING["llama"]}),
    "llama-q-and-v": ("llama", {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "llama-up-of-layer-1": ("llama", {"r": 2, "target_modules": ["up_proj"], "layers_to_transform": [1]}),
    "llama-patterns": (
        "llama",
        {
            "r": 4, "target_modules": EVERYTHING["llama"], "use_rslora": True, "rank_pattern": {"q_proj": 7},
            "alpha_pattern": {"layers.1.mlp.up_proj": 3, "^model.layers.0.self_attn.q_proj": 5, "k_proj": 11},
        },
    ),
}  # fmt: skip
TOKENS = torch.tensor([[5, 99, 7, 23, 61, 2, 40, 18, 77, 3, 12]], dtype=torch.int32)


def oracle(name: str, folder: Path) -> tuple[Any, Path, Path]:
    """A random transformers model with a random adapter of peft, and where both are saved."""
    family, options = OPTIONS[name]
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder / "adapter")
    return model.eval(), folder / "base", folder / "adapter"


def our_logits(model: Model, adapter: Adapter) -> torch.Tensor:
    network = adapted(model, [(adapter, ALL)])
    return model.logits(network(dense_batch(TOKENS)))


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_merged_model(name, backend, tmp_path):
    theirs, base, folder = oracle(name, tmp_path)
    model = load_model(base, backends.load(backend), "float32", "cpu").model
    ours = our_logits(model, load_adapter(folder, model))
    plain = model.logits(model(dense_batch(TOKENS)))
    merged = theirs.merge_and_unload()
    twin, exact = merged(TOKENS.long()).logits[0], merged.double()(TOKENS.long()).logits[0]
    assert_within(ours, exact, twin)
    assert (plain - exact).abs().max() > 0.05  # so that an adapter left out would be seen


@torch.inference_mode()
def test_rows_of_q_and_k_follow_the_order_of_a_gguf_file(tmp_path):
    theirs, _, folder = oracle("llama", tmp_path)
    config = theirs.config
    tensors = {name: tensor for name, tensor in _plain_tensors(theirs) if "rotary" not in name}
    fields = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 48, "llama.feed_forward_length": 80, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 12, "llama.attention.value_length": 12,
        "llama.rope.dimension_count": 12, "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }  # fmt: skip
    path = save_gguf(tmp_path / "model.gguf", fields, llama_gguf_tensors(tensors, 4, 2))
    model = load_model(path, REFERENCE, "float32", "cpu").model
    ours = our_logits(model, load_adapter(folder, model))
    merged = theirs.merge_and_unload()
    twin, exact = merged(TOKENS.long()).logits[0], merged.double()(TOKENS.long()).logits[0]
    assert_within(ours, exact, twin)


def _plain_tensors(model: Any) -> list[tuple[str, torch.Tensor]]:
    """The base model's own tensors, by the names that they have without peft."""
    state = model.get_base_model().state_dict().items()
    return [(name.replace(".base_layer", ""), tensor) for name, tensor in state if "lora_" not in name]
