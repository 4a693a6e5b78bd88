"""What was generated is found again: by the next turn of a chat, by branches, by a sequence that was preempted."""

from dataclasses import replace

import pytest

from octavo.gpt import LLM, SamplingParams
from octavo.kernels import backends

from tiny import TINY, tiny_engine, tiny_model
from watched import finish, outputs_of, poison, prompts

LONG = replace(TINY["llama"], context_size=1100)
CHAT = {"num_blocks": 512, "max_num_batched_tokens": 256}
DRAWN = SamplingParams(temperature=0.9, seed=4, max_tokens=12, logprobs=3)


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


def model_on(backend, config=TINY["llama"]):
    model = tiny_model(config, backends.load(backend))
    model.pack()
    return model


def prefilled(engine, prompt, params):
    """How many tokens the request computes as prefill, and what it yields."""
    before = engine.stats()["tokens_prefilled"]
    ((ids, logprobs),) = outputs_of(engine, [prompt], params)
    return engine.stats()["tokens_prefilled"] - before, ids, logprobs


def test_the_second_turn_of_a_chat_computes_the_new_words_and_at_most_a_block(async_scheduling):
    """A thousand tokens, 300 of them generated; the answer has the bits of an engine that has seen nothing."""
    model, first = model_on("cpu", LONG), [(7 * i * i) % 97 for i in range(700)]
    engine = tiny_engine(model, async_scheduling=async_scheduling, **CHAT)
    _, answer, _ = prefilled(engine, first, replace(DRAWN, max_tokens=300, logprobs=None))
    second = [*first, *answer, 5, 6, 7, 8, 9]
    computed, *got = prefilled(engine, second, DRAWN)
    assert 5 < computed <= 5 + engine.config.block_size
    assert prefilled(tiny_engine(model, False, **CHAT), second, DRAWN) == (len(second), *got)


@pytest.mark.slow  # loads SmolLM2
@pytest.mark.parametrize(("dtype", "weights"), [("float32", "dense"), ("bfloat16", "dense"), ("bfloat16", "q8_0")])
def test_the_second_turn_of_a_chat_with_smollm2(dtype, weights):
    options = {"backend": "cpu", "dtype": dtype, "weights": weights, "max_model_len": 1100, "num_blocks": 160}
    text = " ".join(f"Line {i}: the weather in town {i} is {i * 7 % 31} degrees." for i in range(60))
    once = SamplingParams(seed=1, max_tokens=150, ignore_eos=True)
    again = SamplingParams(seed=2, max_tokens=8, logprobs=3)
    with LLM("smollm2", **options) as warm, LLM("smollm2", **options, enable_prefix_caching=False) as cold:
        first, new = (warm.tokenizer.encode(words) for words in (text, " And which town is the warmest of them?"))
        first = first[:850]
        second = [*first, *warm.generate([first], once)[0].outputs[0].token_ids, *new]
        before = warm.stats()["tokens_prefilled"]
        ((ours,), (wanted,)) = (
            [request.outputs[0] for request in llm.generate([second], again)] for llm in (warm, cold)
        )
        assert len(new) < warm.stats()["tokens_prefilled"] - before <= len(new) + 16
        assert (ours.token_ids, ours.logprobs) == (wanted.token_ids, wanted.logprobs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("ending", ["length", "stop id", "abort"])
def test_all_full_blocks_are_found_however_the_text_ended(ending, backend, async_scheduling):
    model = model_on(backend)
    engine = poison(tiny_engine(model, async_scheduling=async_scheduling))
    (free,) = outputs_of(tiny_engine(model), [[1, 2, 3]], replace(DRAWN, max_tokens=20))
    stops = {"stop_token_ids": (free[0][13],)} if ending == "stop id" else {}
    request = engine.add([1, 2, 3], replace(DRAWN, max_tokens=20, **stops))
    while not request.finished:
        engine.step()
        if ending == "abort" and len(request.outputs[0].token_ids) > 9:
            engine.abort(request.request_id)
    finish(engine)
    text = [1, 2, 3, *request.outputs[0].token_ids]
    computed, ids, logprobs = prefilled(engine, [*text, 50], DRAWN)
    # where steps are read late, the host does not know the newest token when the last step is started
    assert computed <= 1 + engine.config.block_size + async_scheduling
    ((wanted_ids, wanted),) = outputs_of(tiny_engine(model, False), [[*text, 50]], DRAWN)
    assert ids == wanted_ids
    assert logprobs == (wanted if backend == "cpu" else [pytest.approx(step, abs=1e-4) for step in wanted])


def test_a_branch_shares_what_is_still_being_written():
    engine = tiny_engine(tiny_model(TINY["gpt2"]))
    request = engine.add(list(range(6)), replace(DRAWN, max_tokens=30))
    while len(request.outputs[0].token_ids) < 12:
        engine.step()
    branch = [*range(6), *request.outputs[0].token_ids]
    assert prefilled(engine, branch, DRAWN)[0] == 18 - 16
    trunk, twig = (engine.add(ids, replace(DRAWN, max_tokens=4)) for ids in (branch, branch[:17]))
    engine.step()
    tables = [sequence.block_table for sequence in engine.scheduler.decoding]
    assert len(tables) == 2
    assert tables[0][:4] == tables[1][:4], "16 tokens, four blocks, one copy"
    finish(engine)
    assert (trunk.num_cached_tokens, twig.num_cached_tokens) == (16, 16)


def test_keys_are_of_adapter_and_salt_too():
    engine = tiny_engine(tiny_model(TINY["gpt2"]))
    ((answer, _),) = outputs_of(engine, [[1, 2, 3]], DRAWN)
    for salt, computed in (("other", 16), ("other", 4), ("", 4)):
        assert prefilled(engine, [1, 2, 3, *answer, 50], replace(DRAWN, max_tokens=1, cache_salt=salt))[0] == computed


def test_a_sequence_that_was_preempted_finds_its_own_blocks(async_scheduling):
    """Nobody wants its blocks while it waits, so it computes only what is in no full block."""
    engine = tiny_engine(tiny_model(TINY["llama"]), async_scheduling=async_scheduling, preemption="recompute")
    request = engine.add([1, 2, 3], replace(DRAWN, max_tokens=40))
    while len(request.outputs[0].token_ids) < 20:
        engine.step()
    before, pool = engine.stats()["tokens_prefilled"], engine.scheduler.pool
    while not engine.scheduler.num_preempted:
        taken = [pool.allocate() for _ in range(len(pool._free))]
        engine.step()
        pool.release(taken)
    finish(engine)
    assert 0 < engine.stats()["tokens_prefilled"] - before <= engine.config.block_size
    ((wanted, _),) = outputs_of(tiny_engine(tiny_model(TINY["llama"])), [[1, 2, 3]], replace(DRAWN, max_tokens=40))
    assert request.outputs[0].token_ids == wanted


def test_what_comes_back_from_host_memory_is_found_again():
    """While it was there, others took all of its blocks."""
    engine = tiny_engine(tiny_model(TINY["llama"]), preemption="swap")
    request, pool = engine.add([1, 2, 3], replace(DRAWN, max_tokens=30)), engine.scheduler.pool
    while not engine.scheduler.num_preempted:
        taken = [pool.allocate() for _ in range(pool.num_available)] if len(request.outputs[0].token_ids) > 20 else []
        engine.step()
        pool.release(taken)
    pool.release([pool.allocate() for _ in range(pool.num_available)])
    assert pool.num_cached == 0
    finish(engine)
    assert prefilled(engine, [1, 2, 3, *request.outputs[0].token_ids, 50], DRAWN)[0] <= 1 + engine.config.block_size


def test_prompt_logprobs_are_read_once(async_scheduling):
    """A request that has them already reads its blocks again after a preemption."""
    params = replace(DRAWN, prompt_logprobs=2, max_tokens=16)
    limits = {"async_scheduling": async_scheduling, "preemption": "recompute"}
    small, roomy = (tiny_engine(tiny_model(TINY["llama"]), num_blocks=number, **limits) for number in (13, 64))
    requests = [[engine.add(prompt, params) for prompt in prompts(4, seed=1)] for engine in (small, roomy)]
    for engine in (small, roomy):
        finish(engine)
    assert small.scheduler.num_preempted > 0
    for one, other in zip(*requests, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        for got, wanted in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert {i: e.logprob for i, e in got.items()} == pytest.approx({i: e.logprob for i, e in wanted.items()})


def test_no_block_is_found_that_began_before_weights_were_replaced(async_scheduling):
    """A sequence that goes on through the change holds values of old and new weights."""
    model = tiny_model(TINY["gpt2"])
    engine = tiny_engine(model, async_scheduling=async_scheduling)
    old = engine.add([1, 2, 3], replace(DRAWN, max_tokens=30))
    while len(old.outputs[0].token_ids) < 10:
        engine.step()
    model.load_state_dict(tiny_model(TINY["gpt2"], seed=1).state_dict())
    outputs_of(engine, [[9]], DRAWN)
    prompt = [1, 2, 3, *old.outputs[0].token_ids]
    computed, ids, _ = prefilled(engine, prompt, DRAWN)
    assert computed == len(prompt)
    assert ids == prefilled(tiny_engine(tiny_model(TINY["gpt2"], seed=1)), prompt, DRAWN)[1]
    assert prefilled(engine, prompt, DRAWN)[0] < 5
