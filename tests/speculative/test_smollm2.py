"""SmolLM2 itself: 75 sampled requests with many options, with guesses and without."""

import random

import pytest
from guesses import eager, many_options, repeating_prompt

from octavo.gpt import LLM, DraftModel, NGram

pytestmark = [pytest.mark.slow, pytest.mark.model]


@pytest.mark.parametrize("weights", ["file", "dense"])
@pytest.mark.parametrize("who", ["ngram", "draft"])
def test_75_of_75_requests_are_equal(smollm2_path, who, weights):
    rng = random.Random(3)
    each = [(repeating_prompt(rng, 60), many_options(rng, seed, 49152)) for seed in range(75)]
    prompts, params = [prompt for prompt, _ in each], [p for _, p in each]
    proposer = NGram(4, min_match=1) if who == "ngram" else DraftModel(str(smollm2_path), 3, weights="q4_0")
    options = {"num_blocks": 40, "max_model_len": 256, "max_num_seqs": 6, "weights": weights, "preemption": "swap"}
    seen = []
    for speculative in (None, proposer):
        with LLM(str(smollm2_path), speculative=speculative, **options) as llm:
            eager(llm.engine.speculation)
            requests = llm.generate(prompts, params, use_tqdm=False)
            seen.append([[(o.token_ids, o.text, o.logprobs, o.finish_reason) for o in r.outputs] for r in requests])
            stats = llm.stats()
    assert sum(ours == theirs for ours, theirs in zip(*seen, strict=True)) == 75
    assert stats["tokens_proposed"] > stats["tokens_accepted"] > 20
