"""A request's tokens and log-probabilities depend on it alone: bit for bit on the Triton ops, to the rounding on the
reference (PyTorch's own products are not row-independent)."""

import random
from dataclasses import dataclass, field, replace

import pytest

from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import ops
from octavo.kernels.ops import REFERENCE, Ops

from tiny import TINY, tiny_engine, tiny_model

NEEDLE = [7, 3, 3, 9, 41, 12, 5, 5, 60, 2, 8, 1, 30, 31, 32, 33, 4, 90, 17]
PARAMS = SamplingParams(seed=11, temperature=0.9, top_p=0.95, max_tokens=4, logprobs=2)


@dataclass(frozen=True)
class Circumstances:
    """Everything about a run that must not matter to the needle."""

    before: int = 0  # neighbours submitted first
    after: int = 0
    warm: bool = False  # the needle's prompt is in the prefix cache already
    limits: dict[str, int] = field(default_factory=dict)
    preempts: bool = False  # the circumstances are meant to be too narrow


CIRCUMSTANCES = {
    "last of many": Circumstances(before=4),
    "first of many": Circumstances(after=4),
    "blocks of 1": Circumstances(after=2, limits={"block_size": 1, "num_blocks": 256}),
    "blocks of 16": Circumstances(after=2, limits={"block_size": 16, "num_blocks": 32}),
    "blocks of 256": Circumstances(after=2, limits={"block_size": 256, "num_blocks": 8}),
    "chunks of 1": Circumstances(before=1, limits={"max_num_batched_tokens": 1}),
    "chunks of 16": Circumstances(before=2, limits={"max_num_batched_tokens": 16}),
    "prefix hit": Circumstances(warm=True),
    "prefix hit in company": Circumstances(before=2, after=2, warm=True),
    "preempted": Circumstances(before=3, limits={"num_blocks": 13}, preempts=True),
}


def neighbours(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(97) for _ in range(rng.randint(1, 20))] for _ in range(count)]


def needle_in(circumstances: Circumstances, family: str, backend: Ops) -> tuple[list[int], list[dict]]:
    """The needle's tokens, and for each step id -> log-probability."""
    engine = tiny_engine(tiny_model(TINY[family], backend), **circumstances.limits)
    if circumstances.warm:
        engine.add(NEEDLE, replace(PARAMS, seed=1, max_tokens=1))
        while engine.has_unfinished:
            engine.step()
    others = neighbours(circumstances.before + circumstances.after)
    company = SamplingParams(seed=3, max_tokens=6)
    for prompt in others[: circumstances.before]:
        engine.add(prompt, company)
    needle = engine.add(NEEDLE, PARAMS)
    for prompt in others[circumstances.before :]:
        engine.add(prompt, company)
    while engine.has_unfinished:
        engine.step()
    assert (engine.scheduler.num_preempted > 0) == circumstances.preempts
    assert (engine.scheduler.num_hit_tokens > 0) >= circumstances.warm
    output = needle.outputs[0]
    return output.token_ids, [{i: entry.logprob for i, entry in step.items()} for step in output.logprobs]


@pytest.fixture(scope="module")
def alone():
    """The needle by itself, computed once for each backend and family."""
    known = {}

    def run(family: str, backend: Ops):
        key = family, backend.name
        if key not in known:
            known[key] = needle_in(Circumstances(), family, backend)
        return known[key]

    return run


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_same_bits_on_the_kernels(name, family, alone):
    backend = ops.load("triton")
    assert needle_in(CIRCUMSTANCES[name], family, backend) == alone(family, backend)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_same_tokens_on_the_reference(name, family, alone):
    token_ids, logprobs = needle_in(CIRCUMSTANCES[name], family, REFERENCE)
    expected_ids, expected = alone(family, REFERENCE)
    assert token_ids == expected_ids
    for got, wanted in zip(logprobs, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)


def test_among_64_on_the_reference(alone):
    crowd = Circumstances(before=32, after=32, limits={"num_blocks": 400, "max_num_seqs": 64})
    assert needle_in(crowd, "gpt2", REFERENCE)[0] == alone("gpt2", REFERENCE)[0]


def test_this_suite_can_fail():
    """A product whose rows feel how many they are must be caught."""

    def crowded(x, *args, **kwargs):
        return REFERENCE.linear(x, *args, **kwargs) * (1 + 1e-6 * len(x))

    backend = replace(REFERENCE, name="crowded", linear=crowded)
    assert needle_in(CIRCUMSTANCES["last of many"], "gpt2", backend) != needle_in(Circumstances(), "gpt2", backend)
