"""`stats()`: each number means what it says."""

import sys
import tracemalloc

import pytest

from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler import stats
from octavo.gpt.scheduler.stats import Clock, Stats

from tiny import TINY, tiny_engine, tiny_model
from watched import check_idle, letters, prompts

COUNTS = [
    "requests_running", "requests_waiting", "requests_finished", "requests_preempted", "tokens_prefilled",
    "tokens_decoded", "blocks_used", "blocks_cached", "blocks_free", "prefix_hit_rate",
]  # fmt: skip
TIMES = ["queue_time", "time_to_first_token", "time_per_output_token"]


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_counts_add_up_at_every_step(preemption, async_scheduling):
    engine = tiny_engine(
        tiny_model(TINY["llama"]), num_blocks=20, preemption=preemption, async_scheduling=async_scheduling
    )
    assert set(engine.stats()) >= {*COUNTS, *TIMES}
    requests = [engine.add(prompt, SamplingParams(seed=1, max_tokens=9, n=2)) for prompt in prompts(8)]
    most_running = 0
    while engine.has_unfinished:
        engine.step()
        now = engine.stats()
        assert now["blocks_used"] + now["blocks_cached"] + now["blocks_free"] == 20
        known = sum(now[f"requests_{state}"] for state in ("running", "waiting", "finished"))
        assert known == 16 or (async_scheduling and known < 16), (
            "those whose last token is sampled and unread are in between"
        )
        most_running = max(most_running, now["requests_running"])
    check_idle(engine)
    end = engine.stats()
    assert (end["requests_running"], end["requests_waiting"], end["requests_finished"]) == (0, 0, 16)
    assert 1 < most_running <= engine.config.max_num_seqs
    assert end["requests_preempted"] > 0
    num_sampled = sum(len(output.token_ids) for request in requests for output in request.outputs)
    assert num_sampled == 16 * 9
    assert end["tokens_decoded"] <= num_sampled - 16, "the first token comes from the prompt"
    if preemption == "swap":
        assert end["tokens_decoded"] == num_sampled - 16


def test_the_hit_rate_is_the_share_of_prompt_tokens_that_were_known():
    engine = tiny_engine(tiny_model(TINY["gpt2"]), num_blocks=64)
    prompt = list(range(33))
    for rate, computed in ((0.0, 33), (32 / 66, 34), (64 / 99, 35)):  # blocks of 4: the last token is computed again
        engine.add(prompt, SamplingParams(max_tokens=1))
        while engine.has_unfinished:
            engine.step()
        assert engine.stats()["prefix_hit_rate"] == pytest.approx(rate)
        assert engine.stats()["tokens_prefilled"] == computed


def test_times_are_those_of_the_clock(monkeypatch):
    """Twenty completions of five tokens: number i waits i seconds, computes its prompt in two, samples one in three."""
    counted = Stats()
    for i in range(20):
        monkeypatch.setattr(stats.time, "perf_counter", lambda i=i: 100.0 + i + 2 + 4 * 3)
        counted.finish(Clock(added=100.0, started=100.0 + i, first_token=102.0 + i), num_tokens=5)
    times = counted.percentiles()
    assert times["queue_time"] == pytest.approx({"p50": 9.5, "p90": 17.1, "p99": 18.81})
    assert times["time_to_first_token"] == pytest.approx({"p50": 11.5, "p90": 19.1, "p99": 20.81})
    assert times["time_per_output_token"] == pytest.approx({"p50": 3.0, "p90": 3.0, "p99": 3.0})


def test_what_never_ran_is_not_timed(monkeypatch):
    counted = Stats()
    counted.finish(Clock(), num_tokens=0)
    assert counted.percentiles() == {name: {} for name in TIMES}
    counted.finish(Clock(added=1.0, started=2.0, first_token=4.0), num_tokens=1)
    assert counted.percentiles()["time_to_first_token"] == {"p50": 3.0, "p90": 3.0, "p99": 3.0}
    assert counted.percentiles()["time_per_output_token"] == {}, "one token has no time between tokens"
    assert counted.num_finished == 2


@pytest.mark.parametrize("with_text", [False, True], ids=["ids", "text"])
def test_a_waiting_request_holds_less_than_two_kilobytes(with_text):
    """Beside its ids: 64 of them here, a list of 8 bytes each, and integers that all requests share."""
    engine = tiny_engine(tiny_model(TINY["gpt2"]), max_num_waiting=3000)
    engine.tokenizer = letters(97) if with_text else None
    prompt, params = [1] * 64, SamplingParams()
    engine.add(prompt, params)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        engine.add(prompt, params)
    held = (tracemalloc.get_traced_memory()[0] - before) / 1000
    tracemalloc.stop()
    assert held - sys.getsizeof(prompt) < 2048
