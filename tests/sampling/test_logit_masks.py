"""allowed_token_ids, bad_words and logprob_token_ids: token by token what bans by hand give, alone and in company."""

import math

import pytest
import torch

from octavo.gpt.request_state import word_tokens
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels.backends import load

from tiny import TINY, run, tiny_engine, tiny_model
from watched import VOCAB, finish, letters, prompts, yielded

PROMPT = [5, 17, 40, 3]
NUM_TOKENS = 24
PARAMS = SamplingParams(temperature=8.0, seed=11, max_tokens=NUM_TOKENS)
ALLOWED = (3, 9, 17, 40, 41, 77)


def text(*token_ids: int) -> str:
    return "".join(chr(33 + token_id) for token_id in token_ids)


def engine_of(model, **options):
    engine = tiny_engine(model, **options)
    engine.tokenizer = letters(VOCAB - 4)  # bytes below 127
    return engine


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


def by_hand(model, words):
    """Each token as a request of its own, which bans what would complete a word by logit_bias."""
    output: list[int] = []
    for _ in range(NUM_TOKENS):
        banned = [word[-1] for word in words if (*output,)[len(output) - len(word) + 1 :] == word[:-1]]
        bias = dict.fromkeys(banned, -math.inf)
        params = PARAMS.replace(max_tokens=1, logit_bias=bias)
        output += run(tiny_engine(model), [PROMPT + output], params)[0]
    return output


def words_of(output):
    """Words that the output would have: of one token, of two, of three, and two that end alike."""
    return [(output[6],), tuple(output[2:4]), tuple(output[9:12]), (output[0], output[3]), (95, output[3])]


def test_bad_words_are_banned_where_their_beginning_came(model, async_scheduling):
    free = run(tiny_engine(model), [PROMPT], PARAMS)[0]
    words = [word for word in words_of(free) if max(word) < VOCAB - 4]
    expected = by_hand(model, words)
    assert expected != free
    params = PARAMS.replace(bad_words=[text(*word) for word in words])
    crowd = engine_of(model, async_scheduling=async_scheduling, num_blocks=40)
    neighbours = [crowd.add(prompt, SamplingParams(max_tokens=9, seed=i)) for i, prompt in enumerate(prompts(5))]
    others = [crowd.add(PROMPT, params), *neighbours, crowd.add(PROMPT, PARAMS)]
    finish(crowd)
    alone = engine_of(model, async_scheduling=async_scheduling)
    request = alone.add(PROMPT, params)
    finish(alone)
    assert request.outputs[0].token_ids == expected
    assert yielded(others[0]) == yielded(request)
    assert others[-1].outputs[0].token_ids == free
    assert not crowd.runner.sampler._masks._tails


@pytest.mark.parametrize(
    ("backend", "temperature"), [("reference", 0.0), ("reference", 8.0), ("cpu", 8.0), ("triton", 8.0)]
)
def test_only_allowed_ids_are_sampled_alone_and_in_company(backend, temperature):
    model = tiny_model(TINY["llama"], load(backend))
    if backend == "cpu":
        model.pack(None)
    params = PARAMS.replace(temperature=temperature, allowed_token_ids=ALLOWED, max_tokens=6)
    others = dict.fromkeys(set(range(VOCAB)) - {*ALLOWED}, -math.inf)
    by_bias = PARAMS.replace(temperature=temperature, logit_bias=others, max_tokens=6)
    expected = run(tiny_engine(model), [PROMPT], by_bias)[0]
    assert run(tiny_engine(model), [PROMPT], params)[0] == expected
    crowd = run(tiny_engine(model), [[7], PROMPT, [8, 9]], [PARAMS.replace(max_tokens=6), params, by_bias])
    assert crowd[1] == expected
    assert {*expected} <= {*ALLOWED}


def test_masks_survive_preemption(model):
    """In a cache too small for two, the younger goes to host memory and comes back with its tail."""
    free = run(tiny_engine(model), [PROMPT], PARAMS)[0]
    words = [word for word in words_of(free) if max(word) < VOCAB - 4]
    params = PARAMS.replace(bad_words=[text(*word) for word in words])
    for preemption in ("swap", "recompute"):
        engine = engine_of(model, num_blocks=8, preemption=preemption, prefix_caching=False)
        engine.add([1, 2, 3], PARAMS)
        request = engine.add(PROMPT, params)
        finish(engine)
        assert engine.scheduler.num_preempted
        assert request.outputs[0].token_ids == by_hand(model, words)


def test_named_ids_are_reported_and_no_others(model):
    engine = tiny_engine(model)
    both = [PARAMS.replace(logprobs=VOCAB), PARAMS.replace(logprob_token_ids=[2, 90, 41], logprobs=5)]
    requests = [engine.add(PROMPT, params) for params in both]
    finish(engine)
    whole, named = (request.outputs[0] for request in requests)
    assert whole.token_ids == named.token_ids
    for token_id, every, some in zip(whole.token_ids, whole.logprobs, named.logprobs, strict=True):
        assert {*some} == {token_id, 2, 90, 41}
        assert all(every[i].rank == entry.rank for i, entry in some.items())
        assert [entry.logprob for entry in some.values()] == pytest.approx([every[i].logprob for i in some], abs=1e-5)


def test_minus_one_reports_every_id(model):
    engine = tiny_engine(model)
    request = engine.add(PROMPT, PARAMS.replace(logprobs=-1, prompt_logprobs=-1, max_tokens=2))
    finish(engine)
    assert all(len(step) == VOCAB for step in request.outputs[0].logprobs)
    assert all(len(step) == VOCAB for step in request.prompt_logprobs[1:])


def test_what_cannot_be_served_is_refused(model):
    engine = tiny_engine(model)
    for params, message in (
        (SamplingParams(bad_words="x"), "bad_words need a tokenizer"),
        (SamplingParams(allowed_token_ids=[VOCAB]), f"allowed_token_ids has token id {VOCAB}"),
        (SamplingParams(logprob_token_ids=[VOCAB]), f"logprob_token_ids has token id {VOCAB}"),
        (SamplingParams(logprobs=-1, n=11), f"n \\(11\\) times logprobs \\({VOCAB}\\) is more than 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.add(PROMPT, params)


def test_a_word_counts_at_the_start_and_after_a_space():
    class Words:
        def encode(self, text: str) -> list[int]:
            return [{"cat": 1, " cat": 2, "s": 3}[piece] for piece in text.replace("cats", "cat|s").split("|")]

    assert word_tokens(("cat", " cat"), Words()) == ((1,), (2,))
    assert word_tokens(("cats",), Words()) == ((1, 3), (2, 3))


def test_the_output_tells_times_and_cached_tokens(model):
    engine = tiny_engine(model)
    first = engine.add(PROMPT * 3, PARAMS)
    finish(engine)
    second = engine.add(PROMPT * 3, PARAMS.replace(n=2))
    finish(engine)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    metrics = second.metrics
    assert metrics.num_generation_tokens == 2 * NUM_TOKENS
    assert metrics.queued_ts <= metrics.scheduled_ts <= metrics.first_token_ts < metrics.last_token_ts
    assert metrics.first_token_latency == metrics.first_token_ts - metrics.queued_ts


def test_the_text_may_have_what_stopped_it(model):
    engine = engine_of(model)
    free = engine.add(PROMPT, PARAMS)
    finish(engine)
    whole, ids = free.outputs[0].text, free.outputs[0].token_ids
    stop = whole[4:6]
    params = [
        PARAMS.replace(stop=stop, include_stop_str_in_output=True),
        PARAMS.replace(stop=stop),
        PARAMS.replace(stop_token_ids=ids[5], include_stop_str_in_output=True),
        PARAMS.replace(detokenize=False),
    ]
    requests = [engine.add(PROMPT, each) for each in params]
    finish(engine)
    texts = [request.outputs[0].text for request in requests]
    end = whole.index(stop)
    assert texts == [whole[: end + 2], whole[:end], whole[: ids.index(ids[5]) + 1], ""]


def test_masks_leave_nan_to_be_found():
    logits = torch.full((VOCAB,), torch.nan)
    engine = engine_of(tiny_model(TINY["gpt2"]))
    engine.runner.model.logits = lambda hidden: logits.expand(hidden.shape[0], -1).clone()
    request = engine.add(PROMPT, PARAMS.replace(bad_words="ab"))
    finish(engine)
    assert request.outputs[0].finish_reason == "error"
