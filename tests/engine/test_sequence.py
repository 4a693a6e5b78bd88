"""A sequence owns its tokens, and knows when it ends; what a step sampled for it may be any number of tokens."""

import pytest

from octavo.gpt.runner.model_runner import StepResult
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Scheduler
from octavo.gpt.scheduler.sequence import Sequence

from tiny import TINY, tiny_engine, tiny_model

MAX_LEN = 8


def sequence_of(length: int, **params) -> Sequence:
    return Sequence(0, list(range(length)), SamplingParams(**params), seed=0, max_len=MAX_LEN)


def test_an_output_shows_what_the_sequence_appends():
    """One list with one writer: a copy in the output would miss the tokens of a preempted or shifted sequence."""
    engine = tiny_engine(tiny_model(TINY["gpt2"]))
    request = engine.add([1, 2, 3], SamplingParams(max_tokens=3))
    sequence = engine.scheduler.waiting[0]
    sequence.append(7)
    assert request.outputs[0].token_ids == [7]
    assert sequence.tokens(0, 4) == [1, 2, 3, 7]


@pytest.mark.parametrize(
    ("length", "params", "ends_after", "shifts"),
    [
        (3, {"max_tokens": 1}, 1, False),
        (3, {"max_tokens": 4}, 4, False),
        (3, {"max_tokens": None}, 6, False),  # its last token is one that no step has to see
        (8, {"max_tokens": None}, 1, False),
        (3, {"max_tokens": 50, "overflow": "shift"}, 6, True),
        (3, {"max_tokens": 6, "overflow": "shift"}, 6, False),
        (20, {"max_tokens": 2, "overflow": "shift"}, 1, True),
    ],
    ids=str,
)
def test_the_step_that_samples_the_last_token_says_so(length, params, ends_after, shifts):
    """The scheduler alone decides, before the host knows any of the tokens."""
    scheduler = Scheduler(EngineConfig(MAX_LEN, block_size=1, num_blocks=MAX_LEN))
    sequence = sequence_of(length, **params)
    scheduler.add(sequence)
    for step in range(1, ends_after + 1):
        ending = scheduler.advance(scheduler.schedule())
        assert sequence.num_sampled == step
        assert ending == ([sequence] if step == ends_after else [])
    assert sequence.reached_limit is not shifts


def test_a_row_may_get_any_number_of_tokens():
    sequences = [sequence_of(1) for _ in range(3)]
    tokens = [(token_id, None) for token_id in range(5)]
    result = StepResult(sequences, [3, 0, 2], tokens, [])
    assert list(result.rows()) == [(sequences[0], tokens[:3]), (sequences[1], []), (sequences[2], tokens[3:])]


def test_tokens_after_the_one_that_ends_a_request_are_dropped(monkeypatch):
    """As a step will yield them that verifies several speculated tokens of a row."""
    engine = tiny_engine(tiny_model(TINY["gpt2"]))
    request = engine.add([1, 2, 3], SamplingParams(max_tokens=9, stop_token_ids=[5]))
    launch = engine.runner.launch

    def three_for_each(plan):
        pending = launch(plan)
        sequences = pending.result().sequences
        tokens = [(token_id, None) for token_id in (4, 5, 6)]
        pending.result = lambda: StepResult(sequences, [3], tokens, [])
        return pending

    monkeypatch.setattr(engine.runner, "launch", three_for_each)
    engine.step()
    assert request.outputs[0].token_ids == [4, 5]
    assert request.outputs[0].finish_reason == "stop"
    assert not engine.has_unfinished
