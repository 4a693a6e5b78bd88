"""The engine's samples: bugs that other engines had with seeds, and with what may be sampled."""

import random

import pytest
import torch

from octavo.gpt.sampling_params import SamplingParams

from tiny import TINY, run, tiny_engine, tiny_model
from watched import VOCAB, finish, prompts

SEEDS = [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63)]


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


def test_every_seed_is_a_seed(model, async_scheduling):
    """Extreme seeds, negative ones too, draw their own tokens, anew each step, the same each time."""
    engine = tiny_engine(model, async_scheduling=async_scheduling)
    params = [SamplingParams(seed=seed, temperature=5.0, max_tokens=16) for seed in SEEDS]
    sampled = run(engine, [[1, 2, 3]] * len(SEEDS), params)
    assert len(set(map(tuple, sampled))) == len(SEEDS)
    assert all(len(set(ids)) > 4 for ids in sampled), "the same draw again and again"
    assert run(engine, [[1, 2, 3]] * len(SEEDS), params) == sampled
    assert [run(tiny_engine(model), [[1, 2, 3]], p)[0] for p in params] == sampled


def test_samples_of_the_last_seed_wrap_around(model):
    """Seed 2^63 - 1 with n=2 goes on at -2^63."""
    engine = tiny_engine(model)
    request = engine.add([4, 5], SamplingParams(seed=2**63 - 1, n=2, max_tokens=9))
    finish(engine)
    first, second = (SamplingParams(seed=seed, max_tokens=9) for seed in (2**63 - 1, -(2**63)))
    assert [output.token_ids for output in request.outputs] == run(tiny_engine(model), [[4, 5]] * 2, [first, second])


def test_requests_without_a_seed_differ(model):
    """Leaving the seed out does not mean one seed for all."""
    params = SamplingParams(temperature=5.0, max_tokens=8)
    assert len(set(map(tuple, run(tiny_engine(model), [[1, 2]] * 6, params)))) == 6


def test_what_is_sampled_in_a_crowd_was_allowed(model, async_scheduling):
    """Under load, every token is among the likeliest k, in the nucleus, and above min_p."""
    rng = random.Random(2)
    params = [
        SamplingParams(
            seed=i, temperature=1.0, max_tokens=10, logprobs=VOCAB, top_k=rng.choice((0, 1, 4)),
            top_p=rng.choice((1.0, 0.2, 0.7)), min_p=rng.choice((0.0, 0.3)),
        )
        for i in range(24)
    ]  # fmt: skip
    engine = tiny_engine(model, num_blocks=40, async_scheduling=async_scheduling)
    requests = [engine.add(prompt, p) for prompt, p in zip(prompts(24), params, strict=True)]
    finish(engine)
    for request, p in zip(requests, params, strict=True):
        output = request.outputs[0]
        for token_id, entries in zip(output.token_ids, output.logprobs, strict=True):
            chances = {i: torch.tensor(entry.logprob).exp().item() for i, entry in entries.items()}
            better = [chance for chance in chances.values() if chance > chances[token_id]]
            assert p.top_k == 0 or len(better) < p.top_k
            kept = sorted(chances.values(), reverse=True)[: p.top_k or VOCAB]
            assert sum(better) / sum(kept) < p.top_p + 1e-5
            assert chances[token_id] >= p.min_p * max(chances.values()) - 1e-6
