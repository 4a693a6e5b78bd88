"""The engine and its cache: bugs that other engines had with blocks, prefixes and padding."""

import os
import random
import subprocess
import sys

import pytest
import torch

from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import PREEMPTIONS

from tiny import TINY, run, tiny_engine, tiny_model
from watched import VOCAB, outputs_of, poison, prompts

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_dead_slots_reach_nobody(model, value):
    """NaN in all cache slots that no token owns, new blocks and blocks used before, changes no bit."""
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=12, logprobs=2)
    many = prompts(10)
    clean = tiny_engine(model, num_blocks=20)
    clean.runner.cache.data.zero_()
    poisoned = poison(tiny_engine(model, num_blocks=20), value)
    assert outputs_of(poisoned, many, params) == outputs_of(clean, many, params)
    assert poisoned.scheduler.num_preempted > 0


def test_padding_rows_write_nothing(model):
    """A padding row's slot -1, taken for Python's last index, overwrote the last block."""
    padded, exact = (tiny_engine(model, capture=capture, max_num_seqs=8) for capture in (lambda step: step, None))
    for engine in (padded, exact):
        requests = [engine.add(prompt, GREEDY) for prompt in prompts(5)]  # five rows, padded to eight
        while len(requests[0].outputs[0].token_ids) < 5:
            engine.step()
        assert len(engine.scheduler.decoding) == 5
    torch.testing.assert_close(padded.runner.cache.data, exact.runner.cache.data, equal_nan=True)


def test_a_prefix_evicted_before_its_turn_is_computed(model):
    """The queued prompt's blocks are known when it is added and gone when it is scheduled."""
    engine = poison(tiny_engine(model, num_blocks=17, max_num_seqs=1))
    known, *others = [prompt * 10 for prompt in prompts(4, longest=4)]
    expected = outputs_of(engine, [known], GREEDY)
    hits_before = engine.scheduler.num_hit_tokens
    assert outputs_of(engine, [*others, known], GREEDY)[-1] == expected[0]
    assert engine.scheduler.num_hit_tokens == hits_before, "the pool was meant to be too small to keep it"


def test_blocks_found_are_not_evicted_for_the_rest(model):
    """A prompt takes its known blocks before it evicts others to hold its end."""
    prefix = list(range(16))
    engine = poison(tiny_engine(model, num_blocks=10))
    first = outputs_of(engine, [[*prefix, 50, 51]], GREEDY)  # 4 full blocks stay known, the oldest ones in the pool
    outputs_of(engine, [list(range(60, 76))], GREEDY)
    longer = [prefix + list(range(30, 44))]
    expected = outputs_of(poison(tiny_engine(model)), longer, GREEDY)
    assert outputs_of(engine, longer, GREEDY) == expected
    assert engine.scheduler.num_hit_tokens == 16
    assert outputs_of(engine, [[*prefix, 50, 51]], GREEDY) == first


@pytest.mark.parametrize("block_size", [1, 4])
def test_hits_equal_misses_while_a_tiny_pool_churns(model, block_size):
    """Few prefixes, many tails, each block used many times over, freed ones poisoned."""
    rng = random.Random(3)
    heads = [[rng.randrange(VOCAB) for _ in range(12)] for _ in range(3)]
    many = [rng.choice(heads) + [rng.randrange(VOCAB)] * rng.randint(1, 6) for _ in range(30)]
    engine = poison(tiny_engine(model, block_size=block_size, num_blocks=32 // block_size))
    cold = poison(tiny_engine(model, prefix_caching=False))
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=3)
    assert [ids for ids, _ in outputs_of(engine, many, params)] == [ids for ids, _ in outputs_of(cold, many, params)]
    assert engine.scheduler.num_hit_tokens > 12 * 8
    assert cold.scheduler.num_hit_tokens == 0


@pytest.mark.parametrize("length", [15, 16, 17])
def test_a_prompt_sent_again_computes_at_least_its_last_token(model, length):
    """Prompts of a whole number of blocks, one more and one less, known to the cache."""
    engine = tiny_engine(model)
    prompt = list(range(length))
    once = outputs_of(engine, [prompt], GREEDY)
    before = engine.stats()["tokens_prefilled"]
    assert outputs_of(engine, [prompt], GREEDY) == once
    assert engine.stats()["tokens_prefilled"] - before == length - (length - 1) // 4 * 4


@pytest.mark.parametrize("preemption", PREEMPTIONS)
@pytest.mark.parametrize("budget", [8, 64], ids=["in chunks", "whole"])
def test_what_is_computed_again_is_no_prefix_hit(model, preemption, budget, async_scheduling):
    """Prompts that share nothing hit nothing, however often they are preempted."""
    many = [[i, *prompt] for i, prompt in enumerate(prompts(8, seed=1))]
    limits = {"num_blocks": 14, "max_num_batched_tokens": budget, "preemption": preemption}
    engine = tiny_engine(model, async_scheduling=async_scheduling, **limits)
    outputs_of(engine, many, SamplingParams(temperature=0, max_tokens=20))
    assert engine.stats()["requests_preempted"] > 0
    assert engine.stats()["prefix_hit_rate"] == 0
    assert engine.scheduler.num_prompt_tokens == sum(map(len, many))


def test_two_engines_on_one_model_do_not_meet(model, async_scheduling):
    """Each engine has its own buffers: two engines step in turn, both reusing theirs, on the same weights."""
    many = prompts(6, seed=7)
    engines = [tiny_engine(model, async_scheduling=async_scheduling, capture=lambda step: step) for _ in range(2)]
    requests = [engines[i // 4].add(prompt, GREEDY) for i, prompt in enumerate(many)]
    while any(engine.has_unfinished for engine in engines):
        for engine in engines:
            engine.step()
    assert [request.outputs[0].token_ids for request in requests] == [
        run(tiny_engine(model), [prompt], GREEDY)[0] for prompt in many
    ]


GPU_RUN = """
import torch
from octavo.gpt import LLM, SamplingParams
llm = LLM("dummy:gpt2", max_model_len=256, num_blocks=24, max_num_seqs=4, cuda_graphs="off")
params = SamplingParams(seed=1, max_tokens=24, logprobs=1)
outputs = llm.generate([[i] * (9 * i) for i in range(1, 9)], params, use_tqdm=False)
print([(r.outputs[0].token_ids, r.outputs[0].cumulative_logprob) for r in outputs])
"""


@pytest.mark.gpu
def test_freed_device_memory_is_not_used():
    """The caching allocator hides use after free; without it, the same bits."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", GPU_RUN], env=os.environ | more, capture_output=True, text=True, check=True
        )
        for more in ({}, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    ]
    assert runs[0] == runs[1] != ""
