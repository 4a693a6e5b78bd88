"""Rows with different adapters in one step: each as alone, to the bit where the backend's products allow it."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from octavo.gpt.engine import Engine
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.base import Model
from octavo.gpt.models.lora import Adapter, Update
from octavo.gpt.runner.decode_graph import cuda_capture
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.kernels import backends

from tiny import TINY, tiny_engine, tiny_model

SHAPES = {
    "gpt2": replace(TINY["gpt2"], num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16),
    "llama": replace(TINY["llama"], num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16),
}
NAMES = (None, "first", "second")


def random_adapter(model: Model, seed: int, rank: int, num_parts: int = 1) -> Adapter:
    """Every projection of the model changed, in one part or two with room between."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, module in model.named_modules():
        if hasattr(module, "part_rows") and name != "lm_head":
            width, starts = module.weight.shape[1], [0, sum(module.part_rows) // 2][-num_parts:]
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
    adapters = {"first": random_adapter(plain, 1, 3), "second": random_adapter(plain, 2, 5, num_parts=2)}
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


PARAMS = SamplingParams(seed=11, temperature=0.9, max_tokens=2, logprobs=2)


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


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
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
    adapters = {name: _moved(random_adapter(model, seed, 16)) for seed, name in enumerate("ab")}

    def run(names: list[str | None], capture: Any) -> dict[str | None, Any]:
        engine = gpu_engine(model, capture)
        for name, adapter in adapters.items():
            engine.runner.adapters.add(name, adapter)
        requests = {name: engine.add(ids(300, 1), replace(PARAMS, max_tokens=24), lora=name) for name in names}
        finish(engine)
        return {name: yielded(request) for name, request in requests.items()}

    together = run([None, "a", "b"], cuda_capture())
    for name in (None, "a", "b"):
        assert run([name], None)[name] == together[name]
    assert len({tuple(token_ids) for token_ids, _ in together.values()}) == 3


def gpu_engine(model: Model, capture: Any) -> Engine:
    config = EngineConfig(512, num_blocks=256, block_size=16, max_num_seqs=16, max_num_batched_tokens=256)
    device = torch.device("cuda")
    cache = PagedCache(model.config, config.num_blocks, config.block_size, torch.bfloat16, device)
    cache.data.fill_(torch.nan)
    return Engine(Runner(model, cache, config, device, capture), model.config, config, None, 0)


def _moved(adapter: Adapter) -> Adapter:
    def on_gpu(update: Update) -> Update:
        return Update(*(x.to("cuda", torch.bfloat16) * 0.02 for x in update[:2]), update.first)

    return Adapter({name: tuple(map(on_gpu, parts)) for name, parts in adapter.updates.items()})
