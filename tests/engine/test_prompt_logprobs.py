"""`prompt_logprobs`: the log-probabilities of the prompt's own tokens are the plain log-softmax of a whole forward."""

import pytest
import torch

from octavo.gpt.models.batch import dense_batch
from octavo.gpt.runner.sampler import LogprobTensors
from octavo.gpt.sampling_params import SamplingParams

from tiny import TINY, tiny_engine, tiny_model
from watched import check, finish, prompts

WINDOW = 64
PROMPT = prompts(1, seed=11)[0] * 3


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


def expected(model, ids):
    """float32 `[len(ids) - 1, vocab_size]`: row i is about id i + 1."""
    return torch.log_softmax(model.logits(model.forward(dense_batch(torch.tensor([ids])), None)), -1)[:-1]


def assert_right(entries, ids, rows, number):
    """Each entry holds the prompt's token and the `number` most likely ones, ranked, with their log-probabilities."""
    assert len(entries) == len(ids)
    first = len(ids) - len(rows)
    assert entries[:first] == [None] * first
    for token_id, entry, row in zip(ids[first:], entries[first:], rows, strict=True):
        likeliest = row.topk(max(number, 1)).indices.tolist()[:number]
        assert set(entry) == {token_id, *likeliest}
        assert [entry[i].rank for i in likeliest] == list(range(1, number + 1))
        assert entry[token_id].rank == int((row > row[token_id]).sum()) + 1
        for i, value in entry.items():
            assert value.logprob == pytest.approx(float(row[i]), abs=1e-4)


@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize("budget", [1, 16, 64], ids="chunks of {}".format)
def test_they_are_the_log_softmax(model, number, budget):
    engine = tiny_engine(model, max_num_batched_tokens=budget)
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=number)
    for _ in range(2):  # the second time the prompt's blocks are known
        request = engine.add(PROMPT, params)
        neighbour = engine.add(PROMPT[:9], SamplingParams(max_tokens=3))
        finish(engine)
        assert_right(request.prompt_logprobs, PROMPT, expected(model, PROMPT), number)
        assert neighbour.prompt_logprobs is None


def test_one_prompt_of_many_samples_has_them_once(model):
    engine = tiny_engine(model)
    request = engine.add(PROMPT, SamplingParams(n=3, max_tokens=1, prompt_logprobs=2))
    finish(engine)
    assert_right(request.prompt_logprobs, PROMPT, expected(model, PROMPT), 2)


def test_a_prompt_of_one_token_has_none_to_tell(model):
    engine = tiny_engine(model)
    request = engine.add([5], SamplingParams(max_tokens=1, prompt_logprobs=1))
    finish(engine)
    assert request.prompt_logprobs == [None]


def test_a_prompt_that_is_preempted_half_way_has_them_once(model):
    """The elder's growth takes a block of a prompt that is computed in chunks; it begins again."""
    engine = tiny_engine(model, num_blocks=11, max_num_batched_tokens=8)
    engine.add([1, 2], SamplingParams(temperature=0, max_tokens=6))
    request = engine.add(PROMPT[:40], SamplingParams(max_tokens=1, prompt_logprobs=1))
    finish(engine)
    assert engine.scheduler.num_preempted == 1
    assert engine.stats()["tokens_prefilled"] > 2 + 40, "it had begun"
    assert_right(request.prompt_logprobs, PROMPT[:40], expected(model, PROMPT[:40]), 1)


def test_a_prompt_longer_than_the_window_has_those_it_shows(model):
    """overflow="shift" cuts the prompt: None for the tokens that no step saw, and for the first that one did."""
    engine = tiny_engine(model)
    long = [i % 97 for i in range(0, 7 * 80, 7)]
    request = engine.add(long, SamplingParams(max_tokens=3, prompt_logprobs=1, overflow="shift"))
    while engine.has_unfinished:
        engine.step()
        check(engine)
    assert_right(request.prompt_logprobs, long, expected(model, long[-WINDOW:]), 1)


def test_starting_a_step_does_not_wait_for_them(model, monkeypatch):
    """They come back with the step's result: reading them while a step is started would wait for the device."""
    engine = tiny_engine(model, async_scheduling=True)
    request = engine.add(PROMPT, SamplingParams(max_tokens=3, prompt_logprobs=1))
    launch = engine.runner.launch

    def refused(self):
        raise AssertionError("read while a step was started")

    def watched(plan):
        with monkeypatch.context() as during:
            during.setattr(LogprobTensors, "read", refused)
            return launch(plan)

    monkeypatch.setattr(engine.runner, "launch", watched)
    finish(engine)
    assert_right(request.prompt_logprobs, PROMPT, expected(model, PROMPT), 1)
