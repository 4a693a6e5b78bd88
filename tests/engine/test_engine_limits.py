"""The engine at its limits: exhaustion, aborts, full contexts, batch sizes and rows that are not numbers."""

from unittest.mock import Mock

import pytest
import torch

from octavo.gpt import LLM
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import PREEMPTIONS
from octavo.gpt.scheduler.sequence import State

from tiny import TINY, run, tiny_engine, tiny_model
from watched import check_idle, finish, outputs_of, poison, prompts

WINDOW = 64
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def async_scheduling(request):
    return request.param


@pytest.mark.parametrize("preemption", PREEMPTIONS)
@pytest.mark.parametrize("overflow", ["stop", "shift"])
def test_exhaustion_never_deadlocks(model, preemption, overflow, async_scheduling):
    """Eight completions, each of which may need the whole pool, all end in bounded steps."""
    engine = poison(tiny_engine(model, num_blocks=16, preemption=preemption, async_scheduling=async_scheduling))
    params = SamplingParams(temperature=0, max_tokens=40 if overflow == "shift" else None, overflow=overflow, n=2)
    requests = [engine.add(prompt, params) for prompt in prompts(4, longest=WINDOW)]
    finish(engine, most_steps=8 * WINDOW * 2)
    for request in requests:
        room = 40 if overflow == "shift" else WINDOW + 1 - len(request.prompt_token_ids)
        assert [len(output.token_ids) for output in request.outputs] == [room] * 2


def test_an_infeasible_request_is_refused_with_both_numbers(model):
    """What fits the window but not the cache is refused at the door; what just fits is served."""
    engine = tiny_engine(model, num_blocks=5)
    with pytest.raises(ValueError, match=r"21 cached tokens, the cache holds 20"):
        engine.add([1] * 11, SamplingParams(max_tokens=11))
    assert not engine.has_unfinished
    assert len(outputs_of(engine, [[1] * 11], SamplingParams(max_tokens=10))[0][0]) == 10


ABORTS = {
    "waiting": ({"max_num_seqs": 1}, lambda scheduler, sequence: sequence in scheduler.waiting),
    "mid-prefill": (
        {"max_num_batched_tokens": 8},
        lambda scheduler, sequence: sequence in scheduler.prefilling and sequence.num_computed,
    ),
    "running": ({}, lambda scheduler, sequence: sequence in scheduler.decoding),
    "swapped": ({"num_blocks": 16}, lambda scheduler, sequence: sequence in scheduler.swapped),
    "preempted, to be computed again": (
        {"num_blocks": 16, "preemption": "recompute"},
        lambda scheduler, sequence: sequence in scheduler.waiting and sequence.output,
    ),
    "finished": ({}, lambda scheduler, sequence: sequence.state is State.FINISHED),
}


@pytest.mark.parametrize("state", ABORTS)
def test_an_abort_in_any_state_gives_everything_back(model, state, async_scheduling):
    """An abort works whatever the request is doing, twice, or with an unknown number; the others do not notice."""
    limits, is_so = ABORTS[state]
    long, prompt = SamplingParams(temperature=0, max_tokens=30), [1, 2, 3] * 8
    engine = poison(tiny_engine(model, async_scheduling=async_scheduling, **limits))
    kept = engine.add(prompt, long)
    dropped = engine.add([4] * 40, SamplingParams(temperature=0, max_tokens=24))
    sequence = engine.scheduler.waiting[-1]
    for _ in range(100):
        if is_so(engine.scheduler, sequence):
            break
        engine.step()
    assert is_so(engine.scheduler, sequence), "the state was never reached"
    for request_id in (dropped.request_id, dropped.request_id, 10**6):
        engine.abort(request_id)
    assert sequence.state is State.FINISHED
    assert not sequence.block_table
    finish(engine)
    assert dropped.outputs[0].finish_reason in ("abort", "length" if state == "finished" else None)
    assert kept.outputs[0].token_ids == run(tiny_engine(model), [prompt], long)[0]


@pytest.mark.parametrize("max_tokens", [1, 2, None])
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1])
def test_prompts_as_long_as_the_window(model, length, max_tokens, async_scheduling):
    """The last position of the model is used, and none after it."""
    engine = poison(tiny_engine(model, async_scheduling=async_scheduling))
    prompt = prompts(1, seed=4)[0][:1] * length
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    room = min(WINDOW + 1 - length, max_tokens or WINDOW)
    if length > WINDOW:
        with pytest.raises(ValueError, match="the prompt has 65 tokens, max_model_len is 64"):
            engine.add(prompt, params)
    else:
        assert [len(ids) for ids, _ in outputs_of(engine, [prompt], params)] == [room]
    shifts = SamplingParams(temperature=0, max_tokens=max_tokens or 5, overflow="shift")
    assert [len(ids) for ids, _ in outputs_of(engine, [prompt], shifts)] == [max_tokens or 5]


def test_no_tokens_at_all_is_refused():
    """max_tokens=0 would be a request that never has anything to give back."""
    with pytest.raises(ValueError, match="max_tokens must be an integer in"):
        SamplingParams(max_tokens=0)


@pytest.mark.parametrize("size", range(1, 7))
def test_every_batch_size_gives_what_each_gets_alone(model, size, async_scheduling):
    """From one sequence up to one more than run together."""
    many = prompts(size, seed=6)
    engine = tiny_engine(model, max_num_seqs=5, async_scheduling=async_scheduling)
    assert run(engine, many, GREEDY) == [run(tiny_engine(model), [prompt], GREEDY)[0] for prompt in many]


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_a_row_that_is_not_numbers_ends_alone(where, async_scheduling):
    """NaN logits end their request with an error; neighbours and later owners of its blocks go on."""
    broken = 96
    model = tiny_model(TINY["llama"])
    model.embed_tokens.weight.data[broken] = torch.nan
    many = [[i for i in prompt if i != broken] or [1] for prompt in prompts(6, seed=8)]
    params = SamplingParams(temperature=0, max_tokens=8, logit_bias={broken: -100})
    alone = [run(tiny_engine(model), [prompt], params)[0] for prompt in many]
    engine = tiny_engine(model, num_blocks=24, async_scheduling=async_scheduling)
    failing = SamplingParams(temperature=0, max_tokens=9, logit_bias=None if where == "prefill" else {broken: 100})
    requests = [engine.add(prompt, params) for prompt in many[:3]]
    bad = engine.add([2, broken, 3] if where == "prefill" else [2, 3], failing)
    requests += [engine.add(prompt, params) for prompt in many[3:]]
    finish(engine)
    output = bad.outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("error", "the logits were not finite")
    assert output.token_ids == ([] if where == "prefill" else [broken])
    assert [request.outputs[0].token_ids for request in requests] == alone
    assert run(engine, many, params) == alone
    check_idle(engine)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("when", ["forward", "sample"])
def test_a_step_that_raises_ends_every_request(error, when, monkeypatch):
    """Half a step is not gone on with: all end with its message, everything is back, and the engine serves again."""
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["gpt2"])
    # The reference, since a captured step does not call `forward`.
    llm = LLM("dummy:tiny", backend="reference", dtype="float32", num_blocks=20, block_size=4)
    requests = [llm.engine.add(prompt, GREEDY) for prompt in prompts(6)]
    for _ in range(3):
        llm.step()
    with monkeypatch.context() as broken:
        broken.setattr(llm.model, when, Mock(side_effect=error))
        with pytest.raises(type(error)):
            llm.step()
    messages = {request.outputs[0].stop_reason for request in requests}
    assert messages == {str(error) or "KeyboardInterrupt"}
    check_idle(llm.engine)
    fresh = LLM("dummy:tiny", backend="reference", dtype="float32")
    for prompt in prompts(6):
        after, expected = (one.generate([prompt], GREEDY, use_tqdm=False)[0].outputs[0] for one in (llm, fresh))
        assert after.token_ids == expected.token_ids
