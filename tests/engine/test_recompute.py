"""preemption="recompute": blocks are dropped, and prompt and output are computed again as if all were prompt."""

import pytest

from octavo.gpt import LLM, QueueFullError
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import PREEMPTIONS, EngineConfig
from octavo.gpt.scheduler.scheduler import Plan, Scheduler
from octavo.gpt.scheduler.sequence import Sequence
from octavo.kernels import backends

from tiny import TINY, run, tiny_engine, tiny_model
from watched import finish, outputs_of, poison, prompts

GREEDY = SamplingParams(temperature=0, max_tokens=16)
OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.7, "presence_penalty": 0.5},
    "min tokens": {"min_tokens": 14, "stop_token_ids": tuple(range(0, 97, 2))},
    "shift": {"overflow": "shift", "max_tokens": 60},
}


@pytest.fixture(params=TINY)
def model(request):
    return tiny_model(TINY[request.param])


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_of_a_request_that_was_never_preempted(model, name, prefix_caching, async_scheduling):
    params = SamplingParams(**{"temperature": 0, "max_tokens": 16, **OPTIONS[name]})
    many = prompts(6, seed=1)
    engine = poison(
        tiny_engine(model, prefix_caching, async_scheduling=async_scheduling, num_blocks=17, preemption="recompute")
    )
    expected = [run(tiny_engine(model, False), [prompt], params)[0] for prompt in many]
    assert [ids for ids, _ in outputs_of(engine, many, params)] == expected
    assert engine.scheduler.num_preempted > 0
    assert engine.stats()["tokens_prefilled"] > sum(map(len, many)), "nothing was computed again"


def test_host_memory_is_never_used(model):
    engine = tiny_engine(model, num_blocks=11, preemption="recompute")
    requests = [engine.add(prompt, GREEDY) for prompt in prompts(6, seed=1)]
    while engine.has_unfinished:
        engine.step()
        assert not any(copy.numel() for copy in engine.runner.cache._host.values())
    assert engine.scheduler.num_preempted > 0
    assert all(len(request.outputs[0].token_ids) == 16 for request in requests)


def test_log_probabilities_are_equal_to_the_rounding(model):
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=2)
    many = prompts(6, seed=1)
    engine = tiny_engine(model, num_blocks=11, preemption="recompute")
    expected = outputs_of(tiny_engine(model), many, params)
    for (_, entries), (_, wanted) in zip(outputs_of(engine, many, params), expected, strict=True):
        for got, right in zip(entries, wanted, strict=True):
            assert got == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"async_scheduling": True}, {"prefix_caching": False}], ids=str)
@pytest.mark.parametrize("preemption", PREEMPTIONS)
@pytest.mark.parametrize("family", TINY)
def test_no_bit_tells_that_a_sequence_was_preempted(family, preemption, options):
    """On kernels whose prefill has the bits of decode."""
    model = tiny_model(TINY[family], backends.load("cpu"))
    model.pack()
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=16, logprobs=2, n=2)
    small = tiny_engine(model, **options, num_blocks=14, preemption=preemption, recompute_cost=2)
    assert everything_of(small, params) == everything_of(tiny_engine(model, False), params)
    assert small.scheduler.num_preempted > 0


def everything_of(engine, params):
    """Tokens and log-probabilities of all completions of six prompts."""
    requests = [engine.add(prompt, params) for prompt in prompts(6, seed=1)]
    finish(engine)
    return [(output.token_ids, output.logprobs) for request in requests for output in request.outputs]


def preempted(prompt, own, number, **limits):
    """The states of the youngest `number` of six samples that are preempted, each `own` tokens after one prompt."""
    config = EngineConfig(2048, **{"block_size": 4, "num_blocks": 4096, **limits})
    scheduler, params, plan = Scheduler(config), SamplingParams(max_tokens=1000), Plan()
    sequences = [Sequence(i, list(range(prompt)), params, seed=0, max_len=2048) for i in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    while len(sequences[-1].output) < own:
        step = scheduler.schedule()
        scheduler.advance(step)
        for sequence in step.decode + [chunk.sequence for chunk in step.prefill]:
            sequence.append(sequence.seq_id)
    for sequence in reversed(sequences[-number:]):
        scheduler._preempt(sequence, plan)
    scheduler.pool.check([sequence.held_blocks for sequence in scheduler.decoding])
    return [sequence.state.value for sequence in sequences[-number:]]


def test_auto_computes_again_what_costs_less_than_copying():
    """All share 1,024 tokens; those after them are computed anew, each for the price of copying 128."""
    assert preempted(1025, 4, 1) == ["waiting"]
    assert preempted(1025, 12, 1) == ["swapped"]
    assert preempted(1025, 12, 1, recompute_cost=64) == ["waiting"]
    assert preempted(1025, 4, 1, preemption="swap") == ["swapped"]
    assert preempted(1025, 12, 1, preemption="recompute") == ["waiting"]
    assert preempted(3, 2, 1) == ["swapped"]


def test_auto_copies_no_more_than_the_cache_holds():
    """Copies hold a shared prompt as often as it was shared: 8 blocks each of 24."""
    assert preempted(29, 2, 5, num_blocks=24) == ["waiting", "waiting", "swapped", "swapped", "swapped"]
    assert preempted(29, 2, 5, num_blocks=24, preemption="swap") == ["swapped"] * 5


def test_the_front_door_passes_its_limits_on(monkeypatch):
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["llama"])
    llm = LLM("dummy:tiny", dtype="float32", num_blocks=16, max_num_waiting=2, preemption="recompute")
    assert (llm.config.max_num_waiting, llm.config.preemption) == (2, "recompute")
    assert LLM("dummy:tiny", dtype="float32").config.preemption == "auto"
    llm.add([1]), llm.add([2])
    with pytest.raises(QueueFullError, match=r"2 requests are waiting already \(max_num_waiting\)"):
        llm.add([3])
    llm.step()
    llm.add([3])
    finish(llm.engine)
    many = llm.generate([[i] for i in range(9)], GREEDY)  # more than may wait: fed as there is room
    assert all(request.finished for request in many)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preemption": "kill"}, "preemption must be one of auto, swap, recompute, not 'kill'"),
        ({"preemption": None}, "preemption must be one of auto, swap, recompute, not None"),
        ({"max_num_waiting": 0}, "max_num_waiting must be a positive integer, not 0"),
        ({"num_blocks": 0}, "num_blocks must be a positive integer, not 0"),
        ({"block_size": 48}, "block_size must be a power of two up to 256, not 48"),
    ],
    ids=str,
)
def test_bad_limits_are_named(options, message, monkeypatch):
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY["llama"])
    with pytest.raises(ValueError, match=message):
        LLM("dummy:tiny", dtype="float32", **options)
    with pytest.raises(ValueError, match=message):
        EngineConfig(64, **options)
