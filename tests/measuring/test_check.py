"""The judge of greedy tokens: lenient to rounding by a measured budget, and to nothing else."""

import random

import pytest
import torch

from octavo.bench.measuring.check import Verifier, spread_rows
from octavo.bench.peers.sources import open_source
from octavo.gpt import LLM, SamplingParams

from bench_tiny import checkpoint

CPU = torch.device("cpu")
PROMPTS = [[(7 * row + 3 * i) % 97 for i in range(12)] for row in range(10)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def verifier(model):
    return Verifier(open_source(str(model)), "float32", CPU, seed=0)


@pytest.fixture(scope="module")
def answers(model):
    """What the reference engine itself says, batched, in blocks, chunk by chunk."""
    llm = LLM(model, backend="reference", dtype="float32", max_num_batched_tokens=16)
    requests = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True), use_tqdm=False)
    return [request.outputs[0].token_ids for request in requests]


def test_the_engine_agrees_with_the_judge(verifier, answers):
    verdict = verifier.check(PROMPTS, answers, same_weights=True)
    assert (verdict.status, verdict.detail) == ("same", "all 72 tokens")  # 8 of the 10 rows are looked at


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize("row", [0, 9])
def test_one_wrong_token_anywhere_is_seen(verifier, answers, row, place):
    spoiled = [list(tokens) for tokens in answers]
    spoiled[row][place] = (spoiled[row][place] + 1) % 97
    verdict = verifier.check(PROMPTS, spoiled, same_weights=True)
    assert verdict.status == "wrong"
    assert "allowed" in verdict.detail


def test_quantised_weights_may_choose_otherwise_now_and_then(verifier, answers):
    spoiled = [[*tokens[:-1], (tokens[-1] + 1) % 97] for tokens in answers]
    verdict = verifier.check(PROMPTS, spoiled, same_weights=False)
    assert verdict.status == "quantised"
    assert verdict.detail.startswith("64 of 72 tokens agree, mean gap ")


def test_tokens_at_random_are_not_those_of_quantised_weights(verifier, answers):
    generator = random.Random(0)
    spoiled = [generator.choices(range(97), k=len(tokens)) for tokens in answers]
    assert verifier.check(PROMPTS, spoiled, same_weights=False).status == "wrong"


def test_the_same_prompt_with_a_longer_answer(verifier, answers):
    for length in (3, 9, 5):
        cut = [tokens[:length] for tokens in answers]
        assert verifier.check(PROMPTS, cut, same_weights=True).detail == f"all {8 * length} tokens"


def test_a_prompt_of_one_token(verifier, model):
    llm = LLM(model, backend="reference", dtype="float32")
    request = llm.generate([[5]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)[0]
    assert verifier.check([[5]], [request.outputs[0].token_ids], same_weights=True).status == "same"


def test_the_budget_follows_the_dtype(model, verifier):
    """bfloat16 rounds 2^16 times as coarsely as float32; its budget is larger, and its own tokens lie within it."""
    coarse = Verifier(open_source(str(model)), "bfloat16", CPU, seed=0)
    assert 0 < verifier.budget < 1e-3 < coarse.budget
    llm = LLM(model, backend="reference", dtype="bfloat16")
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    own = [request.outputs[0].token_ids for request in llm.generate(PROMPTS, params, use_tqdm=False)]
    assert coarse.check(PROMPTS, own, same_weights=True).status in ("same", "rounding")


def test_a_choice_between_equals_is_rounding(verifier, answers, monkeypatch):
    monkeypatch.setattr(verifier, "_gaps", lambda prompt, answer: [0.0, verifier.budget, 0.0])
    assert verifier.check(PROMPTS, answers, same_weights=True).status == "rounding"
    monkeypatch.setattr(verifier, "_gaps", lambda prompt, answer: [0.0, 1.01 * verifier.budget, 0.0])
    assert verifier.check(PROMPTS, answers, same_weights=True).status == "wrong"
    monkeypatch.setattr(verifier, "_gaps", lambda prompt, answer: [0.0, float("nan")])
    assert verifier.check(PROMPTS, answers, same_weights=True).status == "wrong"


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 64, 1000])
def test_rows_are_spread_over_the_batch(num_rows):
    rows = spread_rows(num_rows)
    assert len(rows) == len(set(rows)) == min(num_rows, 8)
    assert (rows[0], rows[-1]) == (0, num_rows - 1)
