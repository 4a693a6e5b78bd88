"""LoRA adapters against peft's own networks, and rows with different adapters in one step: each as alone."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.gpt.engine import Engine
from octavo.gpt.loading.adapter import load_adapter
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import dense_batch
from octavo.gpt.models.lora import Adapter, Update, adapted
from octavo.gpt.runner.decode_graph import cuda_capture
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE
from octavo.kernels.testing.numerics import assert_within

from checkpoints import llama_gguf_tensors, save_gguf
from tiny import TINY, tiny_engine, tiny_model

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


# One batch of many adapters ------------------------------------------------------------------------------------------

SHAPES = {
    "gpt2": replace(TINY["gpt2"], num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16),
    "llama": replace(TINY["llama"], num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16),
}
NAMES = (None, "first", "second")


def random_adapter(model: Model, seed: int, rank: int) -> Adapter:
    """Every projection of the model changed, some of them in two parts with room between."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, module in model.named_modules():
        if hasattr(module, "part_rows") and name != "lm_head":
            width, starts = module.weight.shape[1], [0, sum(module.part_rows) // 2]
            updates[name] = tuple(
                Update(
                    torch.randn(rank, width, generator=generator),
                    torch.randn(sum(module.part_rows) // 3, rank, generator=generator) * 0.3,
                    start,
                )
                for start in starts
            )
    return Adapter(updates)


@cache
def network(family: str, backend: str) -> tuple[Model, dict[str, Adapter]]:
    plain = tiny_model(SHAPES[family])
    adapters = {"first": random_adapter(plain, 1, 3), "second": random_adapter(plain, 2, 5)}
    model = tiny_model(SHAPES[family], backends.load(backend))
    if backend == "cpu":
        model.pack()
    return model, adapters


def engine_of(family: str, backend: str, **limits: Any) -> Engine:
    model, adapters = network(family, backend)
    engine = tiny_engine(model, **limits)
    for name, adapter in adapters.items():
        engine.runner.adapters.add(name, adapter)
    return engine


def ids(length: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(97) for _ in range(length)]


PARAMS = SamplingParams(seed=11, temperature=0.9, max_tokens=3, logprobs=2)


def yielded(request: Any) -> tuple[list[int], list[dict[int, float]]]:
    steps = [{i: entry.logprob for i, entry in step.items()} for step in request.outputs[0].logprobs or []]
    return request.outputs[0].token_ids, steps


def finish(engine: Engine) -> None:
    while engine.has_unfinished:
        engine.step()


@cache
def alone(family: str, backend: str, name: str | None) -> Any:
    engine = engine_of(family, backend)
    request = engine.add(ids(9, 1), PARAMS, lora=name)
    finish(engine)
    return yielded(request)


CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "together": {},
    "in chunks of 4": {"max_num_batched_tokens": 4},
    "asynchronous": {"async_scheduling": True, "capture": lambda step: step},
    "swapped": {"num_blocks": 10},
    "computed again": {"num_blocks": 10, "preemption": "recompute"},
}


def in_company(family: str, backend: str, circumstances: str) -> dict[str | None, Any]:
    """The same prompt with each adapter and with none, in one batch, among neighbours."""
    engine = engine_of(family, backend, **CIRCUMSTANCES[circumstances])
    engine.add(ids(4, 2), SamplingParams(max_tokens=6, seed=3), lora="second")
    requests = {name: engine.add(ids(9, 1), PARAMS, lora=name) for name in NAMES}
    finish(engine)
    assert (engine.scheduler.num_preempted > 0) == ("num_blocks" in CIRCUMSTANCES[circumstances])
    return {name: yielded(request) for name, request in requests.items()}


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("circumstances", ["together", "swapped"])
def test_two_adapters_and_the_base_in_one_batch_have_the_bits_they_have_alone(circumstances, family):
    together = in_company(family, "triton", circumstances)
    for name, result in together.items():
        assert result == alone(family, "triton", name)
    assert len({str(result) for result in together.values()}) == len(NAMES)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("circumstances", CIRCUMSTANCES)
def test_two_adapters_and_the_base_in_one_batch_draw_the_tokens_they_draw_alone(circumstances, family, backend):
    for name, (token_ids, logprobs) in in_company(family, backend, circumstances).items():
        expected_ids, expected = alone(family, backend, name)
        assert token_ids == expected_ids
        for got, wanted in zip(logprobs, expected, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)


def test_a_base_request_has_the_bits_of_an_engine_without_adapters():
    engine = tiny_engine(network("gpt2", "triton")[0])
    request = engine.add(ids(9, 1), PARAMS)
    finish(engine)
    assert in_company("gpt2", "triton", "together")[None] == yielded(request)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "smollm2"])
def test_the_same_bits_at_real_sizes(family):
    model = load_model(f"dummy:{family}", backends.load("triton"), "bfloat16", "cuda").model
    model, adapters = model, {name: _moved(random_adapter(model, seed, 16)) for seed, name in enumerate("ab")}
    from test_exactness import REAL, Circumstances, engine_for

    def run(names: list[str | None], capture: Any) -> dict[str | None, Any]:
        engine = engine_for(model, Circumstances(before=6, capture=capture), REAL)
        for name, adapter in adapters.items():
            engine.runner.adapters.add(name, adapter)
        requests = {name: engine.add(ids(300, 1), replace(PARAMS, max_tokens=24), lora=name) for name in names}
        finish(engine)
        return {name: yielded(request) for name, request in requests.items()}

    together = run([None, "a", "b"], cuda_capture())
    for name in (None, "a", "b"):
        assert run([name], None)[name] == together[name]
    assert len({tuple(token_ids) for token_ids, _ in together.values()}) == 3


def _moved(adapter: Adapter) -> Adapter:
    def on_gpu(update: Update) -> Update:
        return Update(*(x.to("cuda", torch.bfloat16) * 0.02 for x in update[:2]), update.first)

    return Adapter({name: tuple(map(on_gpu, parts)) for name, parts in adapter.updates.items()})
