"""The engine on the reference ops: what a request yields depends on it alone."""

import random

import pytest
import torch

from octavo.gpt.models.batch import dense_batch
from octavo.gpt.sampling_params import SamplingParams

from tiny import TINY, run, tiny_engine, tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(97) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def greedy_by_hand(model, prompt: list[int], num_tokens: int, window: int = 64) -> list[int]:
    """The textbook's loop: no cache, each step sees the last `window` tokens."""
    ids = list(prompt)
    for _ in range(num_tokens):
        hidden = model.forward(dense_batch(torch.tensor([ids[-window:]])), None)
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    return ids[len(prompt) :]


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


def test_greedy_equals_the_textbook_loop(model):
    for prompt in prompts(4):
        assert run(tiny_engine(model), [prompt], GREEDY) == [greedy_by_hand(model, prompt, 12)]


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_batched_equals_alone(model, block_size, prefix_caching):
    many = prompts(16)
    alone = [run(tiny_engine(model), [prompt], GREEDY)[0] for prompt in many]
    engine = tiny_engine(model, prefix_caching, block_size=block_size, num_blocks=1024 // block_size)
    assert run(engine, many, GREEDY) == alone


@pytest.mark.parametrize("budget", [1, 3, 16])
def test_chunked_prefill_changes_nothing(model, budget):
    many = prompts(6)
    assert run(tiny_engine(model, max_num_batched_tokens=budget), many, GREEDY) == run(tiny_engine(model), many, GREEDY)


@pytest.mark.parametrize("num_blocks", [11, 16, 24])
def test_preempted_sequences_come_back_unharmed(model, num_blocks):
    many = prompts(12, seed=1)
    engine = tiny_engine(model, num_blocks=num_blocks)
    expected = [run(tiny_engine(model), [prompt], GREEDY)[0] for prompt in many]
    assert run(engine, many, GREEDY) == expected
    assert engine.scheduler.num_preempted > 0, "the pool was meant to be too small"
    assert engine.scheduler.pool.num_used == 0


def test_prefix_hit_equals_miss(model):
    shared = prompts(1, seed=2)[0] * 3
    many = [shared[:20] + tail for tail in prompts(5, seed=3, longest=8)]
    engine = tiny_engine(model)
    first = run(engine, many, GREEDY)
    assert run(engine, many, GREEDY) == first == run(tiny_engine(model, prefix_caching=False), many, GREEDY)
    assert engine.scheduler.num_hit_tokens > 5 * 16


@pytest.mark.parametrize("length", [8, 16, 17, 63, 64])
def test_a_known_prompt_is_still_computed_to_its_last_token(model, length):
    """A prompt that the cache holds whole."""
    prompt = prompts(1, longest=1)[0] * length
    engine = tiny_engine(model)
    once = run(engine, [prompt], GREEDY)
    assert run(engine, [prompt], GREEDY) == once == [greedy_by_hand(model, prompt, min(12, 65 - length))]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_shift_sees_exactly_the_last_tokens(model, prefix_caching):
    params = SamplingParams(temperature=0, max_tokens=40, overflow="shift")
    many = [prompt * 20 for prompt in prompts(3, longest=3)] + prompts(2)
    many[0] = (many[0] * 4)[:70]  # longer than the window from the start
    engine = tiny_engine(model, prefix_caching, num_blocks=128)
    assert run(engine, many, params) == [greedy_by_hand(model, prompt, 40) for prompt in many]
    assert run(engine, many, params) == [greedy_by_hand(model, prompt, 40) for prompt in many], "after the shift"


@pytest.mark.parametrize(("length", "expected"), [(64, 1), (63, 2), (40, 25)])
def test_the_window_ends_a_request(model, length, expected):
    engine = tiny_engine(model)
    request = engine.add([5] * length, SamplingParams(temperature=0, max_tokens=None))
    while engine.has_unfinished:
        engine.step()
    assert (len(request.outputs[0].token_ids), request.outputs[0].finish_reason) == (expected, "length")


def test_seeds_make_the_draw(model):
    prompt, other = prompts(2, seed=4)
    seeded = SamplingParams(seed=7, max_tokens=20)
    alone = run(tiny_engine(model), [prompt], seeded)[0]
    company = [other, prompt, other, prompt]
    params = [SamplingParams(seed=1), seeded, GREEDY, SamplingParams(seed=8, max_tokens=20)]
    together = run(tiny_engine(model), company, params)
    assert together[1] == alone
    assert together[3] != alone
    assert run(tiny_engine(model), company[::-1], params[::-1])[2] == alone


def test_samples_of_one_prompt_are_those_of_consecutive_seeds(model):
    prompt = prompts(1, seed=5)[0]
    engine = tiny_engine(model)
    request = engine.add(prompt, SamplingParams(n=3, seed=10, max_tokens=9))
    while engine.has_unfinished:
        engine.step()
    apart = [run(tiny_engine(model), [prompt], SamplingParams(seed=10 + i, max_tokens=9))[0] for i in range(3)]
    assert [output.token_ids for output in request.outputs] == apart


def test_penalties_and_bias_reach_the_choice(model):
    prompt = prompts(1, seed=7)[0]
    forced = run(tiny_engine(model), [prompt], SamplingParams(temperature=0, max_tokens=5, logit_bias={11: 100.0}))[0]
    assert forced == [11] * 5
    banned = SamplingParams(temperature=0, max_tokens=30, presence_penalty=2.0, frequency_penalty=2.0)
    plain = run(tiny_engine(model), [prompt], SamplingParams(temperature=0, max_tokens=30))[0]
    assert len(set(run(tiny_engine(model), [prompt], banned)[0])) > len(set(plain))


def test_min_tokens_holds_the_end_off(model):
    prompt = prompts(1, seed=8)[0]
    first = run(tiny_engine(model), [prompt], GREEDY)[0][0]
    stop = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[first])
    assert run(tiny_engine(model), [prompt], stop)[0] == [first]
    late = SamplingParams(temperature=0, max_tokens=8, min_tokens=4, stop_token_ids=[first])
    ids = run(tiny_engine(model), [prompt], late)[0]
    assert len(ids) >= 5 or first not in ids
    assert first not in ids[:4]


def test_logprobs_are_the_raw_softmax(model):
    engine = tiny_engine(model)
    prompt = prompts(1, seed=9)[0]
    request = engine.add(prompt, SamplingParams(seed=3, temperature=0.7, top_k=5, max_tokens=6, logprobs=4))
    while engine.has_unfinished:
        engine.step()
    output = request.outputs[0]
    logits = model.logits(model.forward(dense_batch(torch.tensor([prompt + output.token_ids])), None))
    expected = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    for step, (token_id, entries) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
        best = sorted(entries.items(), key=lambda entry: entry[1].rank)
        assert entries[token_id].logprob == pytest.approx(float(expected[step, token_id]), abs=1e-4)
        assert [i for i, _ in best[:4]] == expected[step].topk(4).indices.tolist()
    assert output.cumulative_logprob == pytest.approx(
        sum(e[i].logprob for i, e in zip(output.token_ids, output.logprobs, strict=True))
    )


BAD_REQUESTS = {
    "empty prompt": ([], {}, "empty"),
    "id outside": ([97], {}, "97.*97"),
    "negative id": ([-1], {}, "-1"),
    "not an id": ([1.5], {}, "1.5"),
    "too long": ([1] * 65, {}, "65.*64"),
    "bias outside": ([1], {"logit_bias": {97: 1.0}}, "logit_bias.*97"),
    "stop id outside": ([1], {"stop_token_ids": [1000]}, "stop_token_ids.*1000"),
    "no tokenizer": ([1], {"stop": "x"}, "tokenizer"),
    "cache too small": ([1] * 30, {"max_tokens": 20}, "49.*40"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_at_the_door(name, model):
    prompt, options, message = BAD_REQUESTS[name]
    engine = tiny_engine(model, num_blocks=10)
    with pytest.raises(ValueError, match=message):
        engine.add(prompt, SamplingParams(**options))
    assert not engine.has_unfinished
    assert run(engine, [[1, 2]], GREEDY)
