"""Two thousand random requests through a pool that is always too small, every step checked."""

import gc
import random
import sys
from dataclasses import replace
from typing import Any

import pytest

from octavo.gpt.engine import Engine
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler import stats

from counted import count
from tiny import TINY, tiny_engine, tiny_model
from watched import check, check_idle, finish, letters, poison, yielded

pytestmark = pytest.mark.slow  # thousands of random steps

NUM_REQUESTS = 2000
VOCAB, WINDOW = 97, 32
SMALL = {
    family: replace(config, context_size=WINDOW, num_layers=1, dim=16, num_heads=2, num_kv_heads=2, intermediate_dim=16)
    for family, config in TINY.items()
}
SMALL["llama"] = replace(SMALL["llama"], num_kv_heads=1, eos_ids=(3, 50))


def engine_of(family: str, **options: Any) -> Engine:
    engine = tiny_engine(tiny_model(SMALL[family]), **options)
    engine.tokenizer = letters(VOCAB)
    return poison(engine)


def random_prompt(rng: random.Random, longest: int) -> list[int]:
    """Half of them begin as others do."""
    length = rng.randint(1, longest)
    prefix = [rng.randrange(3), *range(0, 75, 5)][: rng.choice((0, 0, 9, 16))]
    return (prefix + [rng.randrange(VOCAB) for _ in range(length)])[:longest]


def random_params(rng: random.Random, seed: int) -> SamplingParams:
    """Each option is in use some of the time."""
    options = {
        "n": lambda: rng.randint(2, 3),
        "temperature": lambda: rng.choice((0, 0, 0.5, 3.0)),
        "top_k": lambda: rng.choice((1, 3, 90)),
        "top_p": lambda: rng.choice((0.1, 0.6, 0.99)),
        "min_p": lambda: rng.choice((0.05, 0.5)),
        "repetition_penalty": lambda: rng.choice((0.8, 1.3)),
        "presence_penalty": lambda: rng.uniform(-2, 2),
        "frequency_penalty": lambda: rng.uniform(-2, 2),
        "logit_bias": lambda: {rng.randrange(VOCAB): rng.uniform(-100, 5) for _ in range(3)},
        "stop": lambda: [chr(rng.randint(33, 126)) for _ in range(4)] + ["ab"],
        "stop_token_ids": lambda: rng.sample(range(VOCAB), 3),
        "ignore_eos": lambda: True,
        "logprobs": lambda: rng.choice((0, 1, 5)),
        "prompt_logprobs": lambda: rng.choice((0, 2)),
        "overflow": lambda: "shift",
    }
    chosen = {name: options[name]() for name in rng.sample(sorted(options), rng.randint(0, 5))}
    max_tokens = rng.choice((1, 2, 4, 8, 8, 30))
    if rng.random() < 0.2:
        chosen["min_tokens"] = rng.randint(1, max_tokens)
    return SamplingParams(seed=seed, max_tokens=max_tokens, **chosen)


def random_request(rng: random.Random, seed: int) -> tuple[list[int], SamplingParams]:
    params = random_params(rng, seed)
    return random_prompt(rng, WINDOW + (8 if params.overflow == "shift" else 0)), params


def soak(engine: Engine, rng: random.Random, first: int, last: int) -> list[RequestOutput]:
    """Requests number `first` to `last` - 1, up to a dozen at once, some cancelled; all outputs."""
    requests: list[RequestOutput] = []
    while first + len(requests) < last or engine.has_unfinished:
        for _ in range(rng.randint(0, 4)):
            if first + len(requests) < last and not engine.is_full:
                requests.append(engine.add(*asked(first + len(requests))))
        engine.step()
        check(engine)
        if requests and rng.random() < 0.05:
            engine.abort(rng.choice(requests[-12:]).request_id)
            check(engine)
        if rng.random() < 0.005:
            engine.scheduler.pool.reset()
    check_idle(engine)
    return requests


def asked(number: int) -> tuple[list[int], SamplingParams]:
    """Request `number`: the same in the crowd and alone."""
    return random_request(random.Random(number), number)


NARROW = {"num_blocks": 14, "max_num_seqs": 7, "max_num_batched_tokens": 16, "max_num_waiting": 9}
WAYS = {
    "swap": {"family": "gpt2", "preemption": "swap"},
    "swap, asynchronous": {
        "family": "llama",
        "preemption": "swap",
        "async_scheduling": True,
        "capture": lambda step: step,
    },
    "whichever is faster": {"family": "gpt2", "preemption": "auto", "recompute_cost": 2},
    "recompute": {"family": "llama", "preemption": "recompute"},
    "recompute, asynchronous": {"family": "gpt2", "preemption": "recompute", "async_scheduling": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_soak(way, monkeypatch):
    """Nothing is lost, nothing grows, and every request gets what it gets alone."""
    monkeypatch.setattr(stats, "KEPT", 50)  # times remembered: that many are there long before the half
    engine, rng = engine_of(**NARROW, **WAYS[way]), random.Random(0)
    share = NUM_REQUESTS // len(WAYS)
    chosen = set(rng.sample(range(share), 25))
    outputs: dict[int, list[tuple]] = {}
    allocated = []
    for first in (0, share // 2):
        requests = soak(engine, rng, first, first + share // 2)
        outputs |= {
            number: yielded(requests[number - first]) for number in chosen & {*range(first, first + share // 2)}
        }
        engine.scheduler.pool.reset()
        del requests
        gc.collect()
        allocated.append(sys.getallocatedblocks())
    count("soak: requests", share)
    assert allocated[1] - allocated[0] < share // 2, "less than one object a request"
    assert engine.scheduler.num_preempted > share // 10
    assert engine.scheduler.num_hit_tokens > share
    for number in chosen:
        alone = engine_of(WAYS[way]["family"])
        request = alone.add(*asked(number))
        finish(alone)
        if "abort" not in {reason for _, _, reason, _ in outputs[number]}:
            assert yielded(request) == outputs[number], f"request {number}"
            count("soak: requests run again alone")
