"""Speculation: whatever is guessed, tokens and log-probabilities are those without it, to the bit."""

import random
from typing import Any

import pytest
import torch
from guesses import Scripted, eager, many_options, repeating_prompt

from octavo.gpt.engine import Engine
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.speculative.draft_model import DraftProposer
from octavo.gpt.speculative.ngram import NGram, NGramProposer
from octavo.gpt.speculative.proposer import Proposer
from octavo.gpt.speculative.speculation import Speculation
from octavo.kernels import backends

from tiny import TINY, tiny_engine, tiny_model
from watched import finish, letters, poison

NUM_REQUESTS = 75
VOCAB = 97


@pytest.fixture(scope="module")
def model():
    made = tiny_model(TINY["llama"], backends.load("cpu"))
    made.make_buffers()
    made.pack()
    return made


@pytest.fixture(scope="module")
def requests():
    rng = random.Random(1)
    return [(repeating_prompt(rng, 40), many_options(rng, seed)) for seed in range(NUM_REQUESTS)]


@pytest.fixture(scope="module")
def plain(model, requests):
    return served(engine_of(model), requests)


def engine_of(model: Any, proposer: Proposer | None = None, max_rows: int = 64, **options: Any) -> Engine:
    speculation = eager(Speculation(proposer, max_rows)) if proposer is not None else None
    engine = tiny_engine(model, speculation=speculation, **{"num_blocks": 400, **options})
    engine.tokenizer = letters(VOCAB)
    return poison(engine)


def served(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[RequestOutput]:
    added = [engine.add(prompt, params) for prompt, params in requests]
    finish(engine)
    return added


def seen(request: RequestOutput) -> list[tuple]:
    """All that a caller sees, to the bit."""
    return [
        (o.token_ids, o.text, o.finish_reason, o.stop_reason, o.logprobs, o.cumulative_logprob, request.prompt_logprobs)
        for o in request.outputs
    ]


def texts_of(outputs: list[RequestOutput], requests: list[tuple[list[int], SamplingParams]]) -> dict:
    return {
        (params.seed + index, tuple(prompt)): completion.token_ids
        for output, (prompt, params) in zip(outputs, requests, strict=True)
        for index, completion in enumerate(output.outputs)
    }


CONDITIONS: dict[str, dict[str, Any]] = {
    "plenty": {},
    "swap": {"num_blocks": 40},
    "recompute": {"num_blocks": 40, "preemption": "recompute"},
    "no prefix cache": {"prefix_caching": False},
    "few rows": {"max_rows": 20},
    "alone": {"max_num_seqs": 1},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_75_of_75_sampled_requests_are_equal_with_guesses_from_their_own_text(model, requests, plain, condition):
    engine = engine_of(model, NGramProposer(NGram(4, min_match=1)), **CONDITIONS[condition])
    outputs = served(engine, requests)
    assert [seen(output) for output in outputs] == [seen(output) for output in plain]
    stats = engine.stats()
    assert stats["tokens_accepted"] > 20, "nothing was put to the test"
    assert stats["tokens_proposed"] > stats["tokens_accepted"]
    assert (engine.scheduler.num_preempted > 0) == ("num_blocks" in CONDITIONS[condition])
    assert engine.speculation.proposer._indices == {}


@pytest.mark.parametrize("shift", [0, 1], ids=["always right", "always wrong"])
def test_75_of_75_are_equal_with_a_proposer_that_is(model, requests, plain, shift):
    proposer = Scripted(texts_of(plain, requests), shift)
    engine = engine_of(model, proposer)
    assert [seen(output) for output in served(engine, requests)] == [seen(output) for output in plain]
    stats = engine.stats()
    assert stats["tokens_proposed"] > 500
    assert stats["tokens_accepted"] == (0 if shift else stats["tokens_proposed"])
    assert not proposer.kept


def drawn_alike(requests: list) -> list:
    """The requests without what a draft model does not know of: penalties, biases, masks."""
    names = "n", "temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "logprobs", "stop", "stop_token_ids"
    return [(prompt, SamplingParams(**{name: getattr(p, name) for name in names})) for prompt, p in requests]


@pytest.mark.parametrize("condition", ["plenty", "recompute"])
def test_a_draft_that_is_the_target_is_always_right(model, requests, condition):
    alike = drawn_alike(requests)
    expected = [seen(output) for output in served(engine_of(model), alike)]
    engine = engine_of(model, draft_of(model), max_num_seqs=16, **CONDITIONS[condition])
    assert [seen(output) for output in served(engine, alike)] == expected
    stats = engine.stats()
    assert stats["tokens_accepted"] == stats["tokens_proposed"] > 300


def test_75_of_75_are_equal_with_another_network_as_a_draft(model, requests, plain):
    other = tiny_model(TINY["gpt2"], model.ops, seed=5)
    other.make_buffers()
    other.pack()
    engine = engine_of(model, draft_of(other), num_blocks=60)
    assert [seen(output) for output in served(engine, requests)] == [seen(output) for output in plain]
    stats = engine.stats()
    assert stats["tokens_proposed"] > max(200, stats["tokens_accepted"])
    draft = engine.speculation.proposer
    assert draft._pool.num_used == 0
    assert not draft._twins


def draft_of(model: Any) -> DraftProposer:
    config = EngineConfig(max_model_len=64, block_size=4, num_blocks=400, max_num_seqs=16, max_num_batched_tokens=16)
    return DraftProposer(model, config, torch.device("cpu"), torch.float32, num_tokens=3)


WORDS = ["".join(chr(33 + (7 * i + k * i * i) % VOCAB) for k in (0, 1)) for i in range(900)]
STRICT = {
    "min tokens": {"min_tokens": 6, "stop_token_ids": range(0, VOCAB, 2), "repetition_penalty": 1.1},
    "bad words": {"bad_words": sorted(set(WORDS))},
}


@pytest.mark.parametrize("name", STRICT)
def test_what_a_guess_bans_or_frees_counts_for_the_tokens_behind_it(model, name):
    options = {"max_tokens": 16, "temperature": 3.0, **STRICT[name]}
    requests = [([seed, 5], SamplingParams(seed=1000 * seed, **options)) for seed in range(24)]
    plain = served(engine_of(model), requests)
    engine = engine_of(model, Scripted(texts_of(plain, requests)))
    assert [seen(output) for output in served(engine, requests)] == [seen(output) for output in plain]
    stats = engine.stats()
    assert stats["tokens_accepted"] == stats["tokens_proposed"] > 50
