"""What a reported log-probability is: the model's or that of what was sampled from, and which ids the filters left."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import LLM, RequestOutput, SamplingParams
from octavo.kernels import backends

PROMPT = [*range(5, 25)]
DRAWN = SamplingParams(seed=3, temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, max_tokens=6, ignore_eos=True)
PROCESSED = {"logprobs_mode": "processed_logprobs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["cpu", "reference"])
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LLM]:
    with load_tiny(folder, request.param) as llm:
        yield llm


def ask(llm: LLM, params: SamplingParams, prompt: list[int] = PROMPT) -> RequestOutput:
    return llm.generate([prompt], params, use_tqdm=False)[0]


def chosen(request: RequestOutput) -> list[float]:
    """The log-probabilities of the tokens that were generated."""
    output = request.outputs[0]
    assert output.logprobs is not None
    return [entries[i].logprob for i, entries in zip(output.token_ids, output.logprobs, strict=True)]


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"logprobs": 5}, {"presence_penalty": 1.5}])
def test_generated_prompt_and_scored_log_probabilities_are_the_same_bits(folder: Path, options: dict[str, Any]) -> None:
    with load_tiny(folder) as llm:
        generated = ask(llm, replace(DRAWN, **{"logprobs": 0, **options}))
        text = PROMPT + list(generated.outputs[0].token_ids)
        prompt = ask(llm, SamplingParams(max_tokens=1, prompt_logprobs=3), text).prompt_logprobs
        assert prompt is not None
        read = [entries[i].logprob for i, entries in zip(text[1:], prompt[1:], strict=True) if entries is not None]
        assert read[len(PROMPT) - 1 :] == chosen(generated)
        assert llm.score(text).nll == -math.fsum(read) / len(read)


def test_an_id_has_one_value_chosen_or_among_the_likeliest(llm: LLM) -> None:
    """The first token of greedy requests is the likeliest; that it was chosen changes no bit."""
    wide = ask(llm, SamplingParams(temperature=0, logprobs=300, max_tokens=1)).outputs[0].logprobs
    for seed in range(8):
        drawn = ask(llm, SamplingParams(seed=seed, temperature=2, logprobs=0, max_tokens=1)).outputs[0]
        assert wide is not None
        assert drawn.logprobs is not None
        assert drawn.logprobs[0] == {i: wide[0][i] for i in drawn.token_ids}


def test_processed_log_probabilities_are_those_of_what_was_sampled_from(llm: LLM) -> None:
    entries = ask(llm, replace(DRAWN, logprobs=30, **PROCESSED)).outputs[0].logprobs
    assert entries is not None
    draw = llm.draw(PROMPT, DRAWN, 30)
    assert 1 < draw.num_kept < 20
    got = {i: math.exp(entry.logprob) for i, entry in entries[0].items()}
    assert {i for i, value in got.items() if value} == {each.token_id for each in draw.candidates if each.kept}
    assert got == pytest.approx(
        dict.fromkeys(got, 0.0) | {c.token_id: c.kept for c in draw.candidates if c.kept}, abs=1e-5
    )


def test_processed_at_temperature_0_is_after_penalties_alone(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    raw = ask(llm, greedy)
    (token_id,) = raw.outputs[0].token_ids
    assert chosen(ask(llm, replace(greedy, **PROCESSED))) == chosen(raw)
    biased = replace(greedy, logit_bias={token_id: 3.0})
    assert chosen(ask(llm, biased)) == chosen(raw)
    p = math.exp(chosen(raw)[0])
    expected = math.log(p * math.exp(3) / (1 - p + p * math.exp(3)))
    assert chosen(ask(llm, replace(biased, **PROCESSED))) == pytest.approx([expected], abs=1e-4)


def test_a_request_says_the_mode_where_the_llm_says_another(folder: Path) -> None:
    reported = replace(DRAWN, logprobs=1)
    with load_tiny(folder) as raw, load_tiny(folder, **PROCESSED) as processed:
        ones = [
            chosen(ask(llm, p))
            for llm, p in ((raw, reported), (processed, replace(reported, logprobs_mode="raw_logprobs")))
        ]
        others = [chosen(ask(llm, p)) for llm, p in ((processed, reported), (raw, replace(reported, **PROCESSED)))]
        mixed = raw.generate([PROMPT] * 2, [reported, replace(reported, **PROCESSED)], use_tqdm=False)
    assert ones[0] == ones[1] != others[0] == others[1]
    assert [chosen(each) for each in mixed] == [ones[0], others[0]]


def test_kept_sets_are_those_of_the_draw(llm: LLM) -> None:
    output = ask(llm, replace(DRAWN, return_kept=True)).outputs[0]
    assert output.logprobs is None
    assert output.kept is not None
    for step, kept in enumerate(output.kept):
        draw = llm.draw(PROMPT + output.token_ids[:step], DRAWN, 30)
        expected = [each for each in draw.candidates if each.kept]
        assert (kept.num_ids, kept.ids) == (draw.num_kept, sorted(each.token_id for each in expected))
        assert kept.mass == pytest.approx(sum(each.tempered for each in expected), abs=1e-5)
        assert output.token_ids[step] in kept.ids


def test_nothing_is_kept_but_the_token_of_a_greedy_request_and_all_without_filters(llm: LLM) -> None:
    greedy = ask(llm, SamplingParams(temperature=0, max_tokens=3, return_kept=True)).outputs[0]
    assert [(each.ids, each.mass) for each in greedy.kept or ()] == [([i], 1.0) for i in greedy.token_ids]
    whole = ask(llm, SamplingParams(seed=0, max_tokens=1, return_kept=True)).outputs[0].kept
    assert whole is not None
    assert (whole[0].ids, whole[0].mass) == ([*range(llm.model.config.vocab_size)], 1.0)


def test_the_sampled_token_alone_is_reported_without_ranking_the_vocabulary(folder: Path) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the vocabulary was ranked")

    ops = replace(backends.load("cpu"), name="unranked", top_logprobs=refused)
    with LLM(folder, backend=ops, dtype="float32", max_model_len=64, num_blocks=64) as llm:
        assert len(chosen(ask(llm, SamplingParams(max_tokens=3, logprobs=0, prompt_logprobs=0)))) == 3
        with pytest.raises(AssertionError, match="ranked"):
            ask(llm, SamplingParams(max_tokens=3, logprobs=1))


@pytest.mark.parametrize("value", ["raw_logits", "processed", 3, ""])
def test_a_mode_that_is_none_is_refused(value: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="logprobs_mode must be one of raw_logprobs, processed_logprobs, not"):
        SamplingParams(logprobs_mode=value)
    with pytest.raises(ValueError, match="logprobs_mode must be one of"):
        load_tiny(folder, logprobs_mode=value)
