"""Speculation: whatever is guessed, tokens and log-probabilities are those without it, to the bit."""

import random
from typing import Any

import pytest
from guesses import Scripted, eager, many_options, repeating_prompt

from octavo.gpt.engine import Engine
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.sampling_params import SamplingParams
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
