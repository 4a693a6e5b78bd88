"""The engine on the Triton kernels: the reference's tokens, and not a bit that depends on company."""

import pytest

from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import ops

from tiny import TINY, run, tiny_engine, tiny_model

PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9] * 17, [11, 12, 13]]
GREEDY = SamplingParams(temperature=0, max_tokens=4)
EVERYTHING = SamplingParams(
    seed=5, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.5,
    frequency_penalty=0.3, logit_bias={3: 2.0}, min_tokens=2, max_tokens=4, logprobs=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def triton():
    return ops.load("triton")


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("params", [GREEDY, EVERYTHING], ids=["greedy", "every option"])
def test_generates_what_the_reference_generates(family, params, triton):
    ours = run(tiny_engine(tiny_model(TINY[family], triton)), PROMPTS, params)
    assert ours == run(tiny_engine(tiny_model(TINY[family])), PROMPTS, params)
