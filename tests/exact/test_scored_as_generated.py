"""The engine on the Triton kernels: a text's log-probabilities are the same bits, generated and scored."""

from dataclasses import replace

import pytest

from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import backends

from tiny import TINY, tiny_engine, tiny_model

PROMPT = [(7 * i * i + 3 * i) % 97 for i in range(300)]  # longer than a piece of attention's keys


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_a_generated_text_has_the_log_probabilities_of_its_scoring(family):
    shape = replace(TINY[family], context_size=512, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16)
    model = tiny_model(shape, backends.load("triton"))
    limits = {"num_blocks": 48, "block_size": 16, "max_num_batched_tokens": 256}
    params = SamplingParams(seed=3, max_tokens=6, ignore_eos=True, logprobs=0)
    generated = finish(tiny_engine(model, **limits), PROMPT, params).outputs[0]
    found = [entry[i].logprob for i, entry in zip(generated.token_ids, generated.logprobs, strict=True)]
    text = PROMPT + generated.token_ids
    scored = finish(tiny_engine(model, **limits), text, SamplingParams(max_tokens=1, prompt_logprobs=0))
    expected = [entry[i].logprob for i, entry in zip(text, scored.prompt_logprobs, strict=True) if entry]
    assert found == expected[-6:]


def finish(engine, prompt, params):
    request = engine.add(prompt, params)
    while engine.has_unfinished:
        engine.step()
    return request
