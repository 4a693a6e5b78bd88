"""Where every layer has a sliding window, blocks before it go back to the pool, and no bit tells."""

from dataclasses import replace
from itertools import count

import pytest
import torch

from octavo.gpt.models.batch import dense_batch
from octavo.gpt.models.decoder_config import LayerType
from octavo.gpt.runner.kv_cache import plan_memory
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import PREEMPTIONS
from octavo.kernels import backends

from tiny import TINY_LLAMA, run, tiny_engine, tiny_model
from watched import check, finish, outputs_of, poison, prompts

SLIDING = replace(TINY_LLAMA, sliding_window=6)
LONG = replace(TINY_LLAMA, num_layers=1, context_size=1100, sliding_window=32)
SMALL = {"block_size": 16, "num_blocks": 8, "max_num_batched_tokens": 32}
DRAWN = SamplingParams(temperature=0.8, seed=5, max_tokens=20, logprobs=2)


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


def poisoned(engine):
    """NaN in each block as soon as nobody holds it, and again when it changes hands."""
    poison(engine)
    step, pool = engine.step, engine.scheduler.pool

    def step_and_poison():
        touched = step()
        engine.runner.cache.data[:, :, pool._free] = torch.nan
        return touched

    engine.step = step_and_poison
    return engine


def squeezed(engine):
    """Eight steps find no free block, so whoever needs one preempts the youngest."""
    step, pool, numbers = engine.step, engine.scheduler.pool, count()

    def step_without_blocks():
        taken = [pool.allocate() for _ in range(pool.num_available if 4 <= next(numbers) < 12 else 0)]
        touched = step()
        pool.release(taken)
        return touched

    engine.step = step_without_blocks
    return engine


@pytest.mark.parametrize("options", [{"n": 2}, {"overflow": "shift", "n": 2}], ids=str)
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize("preemption", PREEMPTIONS)
def test_every_token_is_that_of_an_engine_that_keeps_all(preemption, prefix_caching, options, async_scheduling):
    model, many = tiny_model(SLIDING), prompts(4, seed=1)
    params = replace(DRAWN, max_tokens=12, **options)
    limits = {"max_model_len": 30, "max_num_batched_tokens": 8, "async_scheduling": async_scheduling}
    small = poisoned(tiny_engine(model, prefix_caching, num_blocks=6, preemption=preemption, **limits))
    ours = outputs_of(small, many, params)
    wanted = outputs_of(tiny_engine(model, False, num_blocks=256, sliding_window=0, **limits), many, params)
    assert small.scheduler.num_preempted > 0
    for (ids, logprobs), (wanted_ids, wanted_logprobs) in zip(ours, wanted, strict=True):
        assert ids == wanted_ids
        for got, right in zip(logprobs, wanted_logprobs, strict=True):
            assert got == pytest.approx(right, abs=1e-4)  # the reference's products are not row-independent


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_not_a_bit_comes_from_a_block_that_was_given_back(backend):
    """In steps of the same sequences, the reference too gives the same bits."""
    model, many = tiny_model(SLIDING, backends.load(backend)), [list(range(14)), list(range(50, 60))]
    params = replace(DRAWN, max_tokens=2 if backend == "triton" else 30)
    ours = outputs_of(poisoned(tiny_engine(model, max_num_batched_tokens=8)), many, params)
    assert ours == outputs_of(tiny_engine(model, max_num_batched_tokens=8, sliding_window=0), many, params)


def test_not_a_bit_is_lost_in_host_memory():
    """The blocks that are held go there and come back, in the same steps as where all are held."""
    model, many = tiny_model(SLIDING), [list(range(14)), list(range(50, 64))]
    ours, kept = (squeezed(poisoned(tiny_engine(model, False, sliding_window=window))) for window in (6, 0))
    assert outputs_of(ours, many, DRAWN) == outputs_of(kept, many, DRAWN)
    assert ours.scheduler.num_preempted == kept.scheduler.num_preempted > 0


def test_tokens_are_those_without_a_cache():
    model, ids = tiny_model(SLIDING), [5, 3, 9]
    for _ in range(40):
        hidden = model(dense_batch(torch.tensor([ids])))
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    params = SamplingParams(temperature=0, max_tokens=40)
    assert run(poisoned(tiny_engine(model, num_blocks=5, max_num_batched_tokens=4)), [ids[:3]], params) == [ids[3:]]


def test_a_thousand_tokens_pass_through_eight_blocks():
    model, params = tiny_model(LONG), SamplingParams(temperature=0.8, seed=1, max_tokens=1000)
    engine = poisoned(tiny_engine(model, **SMALL))
    request, most = engine.add([1, 2, 3], params), 0
    while engine.has_unfinished:
        engine.step()
        check(engine)
        most = max(most, engine.stats()["blocks_used"])
    assert most == 3, "a window of 32 tokens touches three blocks of 16"
    kept = tiny_engine(model, sliding_window=0, **{**SMALL, "num_blocks": 70})
    assert [request.outputs[0].token_ids] == run(kept, [[1, 2, 3]], params)


def test_a_prompt_longer_than_the_pool_is_computed_in_chunks(async_scheduling):
    model, params = tiny_model(LONG), SamplingParams(temperature=0, max_tokens=5, logprobs=1, prompt_logprobs=0)
    many = [prompt * 30 for prompt in prompts(3, seed=3, longest=25)]
    assert max(map(len, many)) > 8 * 16
    engine = tiny_engine(model, async_scheduling=async_scheduling, **SMALL)
    kept = tiny_engine(model, sliding_window=0, **{**SMALL, "num_blocks": 200})
    assert outputs_of(poisoned(engine), many, params) == outputs_of(kept, many, params)


def test_a_block_given_back_is_still_found():
    """The whole prompt is known while nobody needs its blocks, also what lay before the window."""
    engine, prompt = poisoned(tiny_engine(tiny_model(SLIDING))), list(range(30))
    first = outputs_of(engine, [prompt], DRAWN)[0][0]
    assert outputs_of(engine, [prompt], DRAWN)[0][0] == first
    assert engine.scheduler.num_hit_tokens == 28
    request = engine.add(prompt, DRAWN)
    engine.step()
    assert engine.stats()["blocks_used"] == 2, "of the 7 found, the window needs two"
    finish(engine)
    assert request.outputs[0].token_ids == first


def test_one_layer_that_sees_all_keeps_all():
    both = LayerType(is_sliding=True), LayerType()
    assert (SLIDING.attention_window, replace(SLIDING, layer_types=both).attention_window) == (6, 0)
    assert TINY_LLAMA.attention_window == 0
    engine = tiny_engine(tiny_model(replace(SLIDING, layer_types=both)))
    engine.add([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True))
    for _ in range(38):
        engine.step()
    assert engine.stats()["blocks_used"] == 10


def test_memory_is_planned_for_windows():
    dtype, device = torch.float32, torch.device("cpu")
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 32}
    config = plan_memory(LONG, dtype, device, None, None, **limits)
    assert (config.sliding_window, config.max_blocks_per_seq) == (32, 5)  # 31 + 32 tokens touch five blocks of 16
    assert (config.max_model_len, config.num_blocks) == (1100, 4 * 5)
    assert plan_memory(LONG, dtype, device, 1100, 5, **limits).max_model_len == 1100
    assert plan_memory(LONG, dtype, device, None, 4, **limits).max_model_len == 64, "what the blocks hold without more"
    message = r"a sliding window of 32 tokens and max_num_batched_tokens \(32\) need more cache than the 64 tokens"
    with pytest.raises(ValueError, match=message):
        plan_memory(LONG, dtype, device, 1100, 4, **limits)
    with pytest.raises(ValueError, match="sliding_window must be a positive integer or 0, not -1"):
        replace(config, sliding_window=-1)


def test_a_request_is_refused_by_what_it_holds_at_a_time():
    engine = tiny_engine(tiny_model(LONG), **{**SMALL, "num_blocks": 4})
    engine.add([1] * 40, SamplingParams(max_tokens=24))
    with pytest.raises(ValueError, match="may need 80 cached tokens, the cache holds 64: raise num_blocks"):
        engine.add([1] * 40, SamplingParams(max_tokens=500))
