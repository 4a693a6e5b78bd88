"""Decode steps: padded to captured sizes, processed one step late, sampled in three modes; the tokens stay the same.

On the CPU a "captured" step is the step itself: what stays different from an eager run are the padded rows and the
buffers that are used again. `test_decode_graph_gpu.py` has the graphs.
"""

import random
from dataclasses import replace

import pytest
import torch

from octavo.gpt.runner.decode_graph import capture_sizes
from octavo.gpt.runner.model_runner import PendingStep
from octavo.gpt.runner.sampler import SampleMode, sample_mode
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels.backends import can_be_captured
from octavo.kernels.ops import REFERENCE

from tiny import TINY, run, tiny_engine, tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
OPTIONS = [
    {},
    {"temperature": 0.0},
    {"top_k": 5, "top_p": 0.9},
    {"min_p": 0.1, "logprobs": 2},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"logit_bias": {3: 5.0}, "logprobs": 0},
    {"min_tokens": 2, "stop_token_ids": tuple(range(0, 97, 3))},
    {"stop_token_ids": tuple(range(0, 97, 5))},
    {"overflow": "shift"},
    {"max_tokens": 1},
]


def same(step):
    return step


def mixture(number, seed):
    """Prompts and parameters of every kind, some longer than the window allows to go on."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(97) for _ in range(rng.choice((1, 3, 8, 17, 30)))] for _ in range(number)]
    params = [
        SamplingParams(seed=i, ignore_eos=True, **{"max_tokens": rng.choice((2, 3, 9, 20)), **rng.choice(OPTIONS)})
        for i in range(number)
    ]
    return prompts, params


@pytest.mark.parametrize("num_rows", range(1, 11))
@pytest.mark.parametrize("family", TINY)
def test_padded_rows_change_nothing(family, num_rows):
    """Every number of rows around the captured sizes (1, 2, 4, 8, 9) gives the eager tokens."""
    model = tiny_model(TINY[family])
    prompts = [[7 * i % 97 + 1] * (i + 1) for i in range(num_rows)]
    padded = run(tiny_engine(model, capture=same, max_num_seqs=9), prompts, GREEDY)
    assert padded == run(tiny_engine(model, max_num_seqs=9), prompts, GREEDY)


def test_padded_rows_write_nothing():
    engine = tiny_engine(tiny_model(TINY["gpt2"]), capture=same, block_size=4, num_blocks=12)
    run(engine, [[1, 2, 3], [4], [5]], GREEDY)
    used = ~engine.runner.cache.data.isnan().flatten(3).all(-1)[0, 0]
    assert int(used.sum()) == 2 + 3 + 2 - 1  # 8, 6 and 6 cached tokens in blocks of 4; the rest is still NaN


@pytest.mark.parametrize("sizes", [1, 5, 64, 100, 256, 300, 1000])
def test_sizes_reach_the_most_rows_and_waste_little(sizes):
    found = capture_sizes(sizes)
    assert found == sorted(set(found))
    assert found[-1] == sizes
    for num_rows in range(8, sizes + 1):
        size = next(size for size in found if size >= num_rows)
        assert size - num_rows < max(8, size / 4)


@pytest.mark.parametrize("capture", [None, same], ids=["eager", "padded"])
@pytest.mark.parametrize(
    ("num_blocks", "preemption"), [(64, "swap"), (11, "swap"), (11, "recompute")], ids=["roomy", "swap", "recompute"]
)
def test_reading_late_changes_no_token(capture, num_blocks, preemption):
    """The next step starts from ids that the host has not seen; the requests end as if it had."""
    model = tiny_model(TINY["llama"])
    prompts, params = mixture(24, seed=1)
    limits = {"max_model_len": 32, "num_blocks": num_blocks, "max_num_seqs": 6, "prefix_caching": False}
    limits["preemption"] = preemption
    at_once = tiny_engine(model, **limits)
    late = tiny_engine(model, capture=capture, async_scheduling=True, **limits)
    assert run(late, prompts, params) == run(at_once, prompts, params)
    if num_blocks == 11:
        assert late.stats()["requests_preempted"] > 0
    assert late.stats()["blocks_used"] == 0
    assert late.stats()["tokens_decoded"] == at_once.stats()["tokens_decoded"]
    assert not late.runner.input_batch.sequences
    assert not late.runner.sampler._counts


def test_log_probabilities_are_async_scheduling_too():
    model = tiny_model(TINY["llama"])
    params = SamplingParams(seed=4, max_tokens=5, logprobs=3, ignore_eos=True)
    found = []
    for async_scheduling in (False, True):
        engine = tiny_engine(model, async_scheduling=async_scheduling)
        request = engine.add([3, 1, 4], params)
        engine.add([1, 5], GREEDY)
        while engine.has_unfinished:
            engine.step()
        found.append((request.outputs[0].logprobs, request.outputs[0].cumulative_logprob))
    assert found[0] == found[1]


def test_a_step_starts_before_the_last_one_is_read(monkeypatch):
    engine = tiny_engine(tiny_model(TINY["gpt2"]), async_scheduling=True)
    engine.add([1, 2, 3], GREEDY)
    events = []
    launch, result = engine.runner.launch, PendingStep.result
    monkeypatch.setattr(engine.runner, "launch", lambda plan: events.append("launch") or launch(plan))
    monkeypatch.setattr(PendingStep, "result", lambda self: events.append("read") or result(self))
    while engine.has_unfinished:
        engine.step()
    assert events == ["launch", *["launch", "read"] * 5, "read"]


def test_what_an_ended_request_drew_meanwhile_is_dropped():
    """A stop id is seen one step late; the step under way then has a row too many, and a neighbour moved into it."""
    model = tiny_model(TINY["gpt2"])
    first = run(tiny_engine(model), [[5]], GREEDY)[0]
    stops = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop_token_ids=(first[1],))
    engine = tiny_engine(model, async_scheduling=True)
    found = run(engine, [[5], [6, 7], [8]], [stops, GREEDY, GREEDY])
    assert found == [first[:2], *run(tiny_engine(model), [[6, 7], [8]], GREEDY)]


def test_aborted_while_a_step_is_under_way():
    engine = tiny_engine(tiny_model(TINY["gpt2"]), async_scheduling=True)
    kept, dropped = engine.add([1, 2], GREEDY), engine.add([3], GREEDY)
    engine.step()
    engine.step()
    engine.abort(dropped.request_id)
    num_tokens = len(dropped.outputs[0].token_ids)
    while engine.has_unfinished:
        engine.step()
    assert dropped.outputs[0].finish_reason == "abort"
    assert len(dropped.outputs[0].token_ids) == num_tokens
    assert kept.outputs[0].token_ids == run(tiny_engine(tiny_model(TINY["gpt2"])), [[1, 2]], GREEDY)[0]
    assert engine.stats()["blocks_used"] == 0


def test_a_row_that_is_not_numbers_ends_alone(monkeypatch):
    """With a late read a step goes on from the broken row before anybody knows; its neighbours do not notice."""
    model = tiny_model(TINY["gpt2"])
    expected = run(tiny_engine(model), [[6, 7]], GREEDY)[0]
    engine = tiny_engine(model, async_scheduling=True, capture=same)
    broken, kept = engine.add([5], GREEDY), engine.add([6, 7], GREEDY)
    forward = model.forward

    def poisoned(batch, cache):
        hidden = forward(batch, cache)
        if batch.max_seqlen_q == 1:
            hidden[0] = torch.nan
        return hidden

    monkeypatch.setattr(model, "forward", poisoned)
    while not broken.finished:
        engine.step()
    monkeypatch.setattr(model, "forward", forward)
    while engine.has_unfinished:
        engine.step()
    assert broken.outputs[0].finish_reason == "error"
    assert kept.outputs[0].token_ids == expected


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, SampleMode.FUSED),
        ({"temperature": 0}, SampleMode.FUSED),
        ({"temperature": 0, "top_k": 3, "top_p": 0.5}, SampleMode.FUSED),  # filters never remove the first maximum
        ({"top_k": 3}, SampleMode.FILTERED),
        ({"top_p": 0.5}, SampleMode.FILTERED),
        ({"min_p": 0.5}, SampleMode.FILTERED),
        ({"logprobs": 0}, SampleMode.LOGITS),
        ({"min_tokens": 1}, SampleMode.LOGITS),
        ({"logit_bias": {1: 1.0}}, SampleMode.LOGITS),
        ({"presence_penalty": 1.0}, SampleMode.LOGITS),
    ],
    ids=str,
)
def test_the_mode_that_serves_a_request(options, mode):
    assert sample_mode(SamplingParams(**options)) is mode


def test_head_and_draw_are_one_op_while_every_row_allows_it():
    """One neighbour that wants log-probabilities makes logits necessary, and changes no token."""
    calls = []

    def noted(name):
        def call(*args):
            calls.append(name)
            return getattr(REFERENCE, name)(*args)

        return call

    ops = replace(REFERENCE, lm_head_sample=noted("lm_head_sample"), sample=noted("sample"))
    model = tiny_model(TINY["llama"], ops)
    sampled = SamplingParams(seed=2, max_tokens=4, ignore_eos=True)
    alone = run(tiny_engine(model), [[1, 2]], sampled)
    assert set(calls) == {"lm_head_sample"}
    calls.clear()
    together = run(
        tiny_engine(model), [[1, 2], [3]], [sampled, SamplingParams(max_tokens=4, logprobs=1, ignore_eos=True)]
    )
    assert set(calls) == {"sample"}
    assert together[0] == alone[0]


@pytest.mark.parametrize("family", TINY)
def test_warming_up_stores_nothing_and_changes_no_token(family):
    model = tiny_model(TINY[family])
    engine = tiny_engine(model, capture=same, max_num_seqs=9)
    engine.runner.warm_up(64)
    assert engine.runner.cache.data.isnan().all()
    assert engine.stats()["graphs_captured"] == 5 * 3  # sizes 1, 2, 4, 8, 9; three endings
    assert run(engine, [[1, 2, 3], [4]], GREEDY) == run(tiny_engine(model), [[1, 2, 3], [4]], GREEDY)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"logprobs": 0}], ids=["fused", "filtered", "logits"])
def test_a_graph_made_on_demand_leaves_the_rows_as_they_were(options):
    """Capturing runs the step once more, which samples from, and writes to, the rows that are about to be used."""

    def capture(step):
        step()
        return step

    model, prompts = tiny_model(TINY["llama"]), [[3, 1, 4], [1, 5], [9], [2, 6, 5, 3]]
    params = [SamplingParams(seed=i, max_tokens=3 + 2 * i, ignore_eos=True, **options) for i in range(4)]
    expected = run(tiny_engine(model), prompts, params)
    for async_scheduling in (False, True):
        assert run(tiny_engine(model, capture=capture, async_scheduling=async_scheduling), prompts, params) == expected


@pytest.mark.parametrize("name", ["write_kv", "paged_attention", "sample", "lm_head_sample"])
def test_a_backend_with_an_op_that_waits_is_not_captured(name):
    ours = replace(REFERENCE, **{op: lambda *_: None for op in REFERENCE.syncs}).with_syncs()
    assert can_be_captured(ours)
    assert not can_be_captured(replace(ours, **{name: getattr(REFERENCE, name)}))
