"""A request's tokens and log-probabilities depend on it alone: bit for bit on the Triton ops, to the rounding on the
reference (PyTorch's own products are not row-independent)."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch

from octavo.gpt.engine import Engine
from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.base import Model
from octavo.gpt.runner.decode_graph import cuda_capture
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE, Ops

from counted import count
from tiny import TINY, tiny_model

Yielded = tuple[list[int], list[dict[int, float]]]  # tokens, and for each step id -> log-probability

SHAPES = {
    "gpt2": replace(TINY["gpt2"], context_size=128, num_heads=2, num_kv_heads=2, head_dim=16),
    "llama": replace(TINY["llama"], context_size=128, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16),
}


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    window: int
    needle: int  # tokens of its prompt
    neighbour: int  # tokens of theirs, at most
    elder: int  # tokens of the prompt that gets the needle preempted
    num_tokens: int  # drawn for the needle
    block_size: int
    dtype: torch.dtype
    device: str

    @property
    def blocks_of_two(self) -> int:
        """What the prompts of the needle and its elder fill: whoever grows first needs another's block."""
        return sum(-(-length // self.block_size) for length in (self.needle, self.elder))


SMALL = Scale(128, 70, 6, 8, 3, 4, torch.float32, "cpu")  # the needle is cut by chunks of 16 and of 64
REAL = Scale(1024, 700, 600, 256, 40, 16, torch.bfloat16, "cuda")  # and by the decode kernel, in pieces of 256


@dataclass(frozen=True)
class Circumstances:
    """Everything about a run that must not matter to the needle."""

    before: int = 0  # neighbours submitted first
    after: int = 0
    warm: bool = False  # the needle's prompt is in the prefix cache already
    resumed: bool = False  # the cache is too small: an elder's growth sends the needle to host memory and back
    async_scheduling: bool = False
    capture: Callable[[Any], Any] | None = None
    limits: dict[str, int] = field(default_factory=dict)


def unchanged(step: Any) -> Any:
    """A step "captured" on the CPU: what a graph shares with it are padded rows, and buffers used again."""
    return step


CIRCUMSTANCES = {
    "first of several": Circumstances(after=3),
    "last of several": Circumstances(before=3),
    "among 16": Circumstances(before=8, after=8, limits={"max_num_seqs": 17}),
    "blocks of 1": Circumstances(after=1, limits={"block_size": 1}),
    "blocks of 16": Circumstances(after=1, limits={"block_size": 16}),
    "blocks of 256": Circumstances(after=1, limits={"block_size": 256}),
    "chunks of 16": Circumstances(before=1, limits={"max_num_batched_tokens": 16}),
    "chunks of 64": Circumstances(before=1, limits={"max_num_batched_tokens": 64}),
    "prefilled whole": Circumstances(before=1, limits={"max_num_batched_tokens": 4096}),
    "prefix hit": Circumstances(warm=True),
    "prefix hit in company, in chunks": Circumstances(1, 1, warm=True, limits={"max_num_batched_tokens": 16}),
    "preempted and resumed": Circumstances(resumed=True),
    "padded or a graph, asynchronous": Circumstances(before=2, async_scheduling=True, capture=unchanged),
}


def random_ids(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(97) for _ in range(length)]


def engine_for(model: Model, circumstances: Circumstances, scale: Scale) -> Engine:
    company = circumstances.before + circumstances.after
    limits = {"block_size": scale.block_size, "max_num_batched_tokens": scale.window, **circumstances.limits}
    roomy = (company + 2) * -(-scale.window // limits["block_size"])
    num_blocks = scale.blocks_of_two if circumstances.resumed else roomy
    config = EngineConfig(scale.window, num_blocks=num_blocks, **limits)
    device = torch.device(scale.device)
    memory = PagedCache(model.config, config.num_blocks, config.block_size, scale.dtype, device)
    memory.data.fill_(torch.nan)
    runner = Runner(model, memory, config, device, circumstances.capture)
    return Engine(runner, model.config, config, None, 0, async_scheduling=circumstances.async_scheduling)


def needle_in(circumstances: Circumstances, model: Model, scale: Scale) -> Yielded:
    """What the needle yields, after making sure that the circumstances were what they say."""
    engine = engine_for(model, circumstances, scale)
    prompt = random_ids(scale.needle, seed=1)
    params = SamplingParams(seed=11, temperature=0.9, top_p=0.95, max_tokens=scale.num_tokens, logprobs=2)
    if circumstances.warm:
        engine.add(prompt, replace(params, seed=1, max_tokens=1))
        finish(engine)
    lengths = random.Random(5)
    for i in range(circumstances.before):
        engine.add(random_ids(lengths.randint(1, scale.neighbour), 100 + i), SamplingParams(seed=i, max_tokens=2))
    if circumstances.resumed:
        engine.add(random_ids(scale.elder, 2), SamplingParams(seed=2, max_tokens=scale.block_size + 2))
    needle = engine.add(prompt, params)
    for i in range(circumstances.after):
        engine.add(random_ids(lengths.randint(1, scale.neighbour), 200 + i), SamplingParams(seed=i, max_tokens=2))
    resumed = finish(engine)
    assert (engine.scheduler.num_hit_tokens >= scale.needle // 2) == circumstances.warm
    assert bool(resumed) == circumstances.resumed
    output = needle.outputs[0]
    assert len(output.token_ids) == scale.num_tokens
    return output.token_ids, [{i: entry.logprob for i, entry in step.items()} for step in output.logprobs or []]


def finish(engine: Engine) -> list[int]:
    """Step to the end; the sequences that came back from host memory."""
    resumed: list[int] = []
    swap_in = engine.runner.cache.swap_in
    engine.runner.cache.swap_in = lambda seq_id, blocks: (resumed.append(seq_id), swap_in(seq_id, blocks))  # type: ignore[method-assign,assignment]
    while engine.has_unfinished:
        engine.step()
    return resumed


@cache
def small_model(family: str, backend: Ops) -> Model:
    return tiny_model(SHAPES[family], backend)


@cache
def real_model(family: str) -> Model:
    return load_model(f"dummy:{family}", backends.load("triton"), "bfloat16", "cuda").model


@cache
def alone(model: Model, scale: Scale) -> Yielded:
    return needle_in(Circumstances(), model, scale)


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_same_bits_on_the_kernels(name, family):
    model = small_model(family, backends.load("triton"))
    assert needle_in(CIRCUMSTANCES[name], model, SMALL) == alone(model, SMALL)
    count("exactness, bit for bit on the Triton ops: needles compared")


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_same_tokens_on_the_reference(name, family):
    model = small_model(family, REFERENCE)
    token_ids, logprobs = needle_in(CIRCUMSTANCES[name], model, SMALL)
    expected_ids, expected = alone(model, SMALL)
    assert token_ids == expected_ids
    for got, wanted in zip(logprobs, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)
    count("exactness, to 1e-4 on the reference ops: needles compared")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "smollm2"])
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_same_bits_at_real_sizes(name, family):
    model, circumstances = real_model(family), CIRCUMSTANCES[name]
    if circumstances.capture:  # the needle alone is computed eagerly
        circumstances = replace(circumstances, capture=cuda_capture())
    assert needle_in(circumstances, model, REAL) == alone(model, REAL)
    count("exactness, bit for bit at real sizes: needles compared")


def test_this_suite_can_fail_on_rows():
    """A product whose rows feel how many they are must be caught."""

    def crowded(x, *args, **kwargs):
        return REFERENCE.linear(x, *args, **kwargs) * (1 + 1e-6 * len(x))

    model = small_model("gpt2", replace(REFERENCE, name="crowded", linear=crowded))
    assert needle_in(CIRCUMSTANCES["last of several"], model, SMALL) != alone(model, SMALL)


@pytest.mark.parametrize("name", ["preempted and resumed", "prefix hit", "blocks of 16"])
def test_this_suite_can_fail_on_places(name):
    """A kernel that lets through a trace of where its keys lie must be caught."""

    def placed(q, k_cache, v_cache, block_table, *args):
        o = REFERENCE.paged_attention(q, k_cache, v_cache, block_table, *args)
        return o * (1 + 1e-6 * block_table[:, :1].float().repeat_interleave(args[1].diff().long(), 0).unsqueeze(-1))

    model = small_model("gpt2", replace(REFERENCE, name="placed", paged_attention=placed))
    assert needle_in(CIRCUMSTANCES[name], model, SMALL) != alone(model, SMALL)
