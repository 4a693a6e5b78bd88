"""The engine on the Triton kernels: the reference's tokens, and not a bit that depends on company."""

from dataclasses import replace

import pytest

from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import backends

from tiny import TINY, run, tiny_engine, tiny_model

PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9] * 17, [11, 12, 13]]
GREEDY = SamplingParams(temperature=0, max_tokens=4)
EVERYTHING = SamplingParams(
    seed=5, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.5,
    frequency_penalty=0.3, logit_bias={3: 2.0}, min_tokens=2, max_tokens=4, logprobs=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def triton():
    return backends.load("triton")


ONE_BY_ONE = [
    {"temperature": 1.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.1}, {"repetition_penalty": 1.3},
    {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"logit_bias": {7: 3.0}},
    {"min_tokens": 3, "stop_token_ids": tuple(range(0, 97, 2))}, {"logprobs": 2},
]  # fmt: skip
KERNELS = ("linear", "write_kv", "paged_attention", "sample", "lm_head_sample", "apply_penalties", "top_logprobs")


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("params", [GREEDY, EVERYTHING], ids=["greedy", "every option"])
def test_generates_what_the_reference_generates(family, params, triton):
    ours = run(tiny_engine(tiny_model(TINY[family], triton)), PROMPTS, params)
    assert ours == run(tiny_engine(tiny_model(TINY[family])), PROMPTS, params)


@pytest.mark.parametrize("options", ONE_BY_ONE, ids=lambda options: next(iter(options)))
def test_so_it_does_with_each_option_of_sampling(options, triton):
    params = SamplingParams(seed=3, max_tokens=4, **options)
    ours = run(tiny_engine(tiny_model(TINY["llama"], triton)), PROMPTS[:2], params)
    assert ours == run(tiny_engine(tiny_model(TINY["llama"])), PROMPTS[:2], params)


def test_every_choice_is_a_kernel_s(triton):
    """A batch of plain, filtered and penalised requests runs the fused kernels, each at least once."""
    calls = set()

    def noted(name):
        return lambda *args, **kwargs: calls.add(name) or getattr(triton, name)(*args, **kwargs)

    model = tiny_model(TINY["llama"], replace(triton, **{name: noted(name) for name in KERNELS}))
    run(tiny_engine(model), [[5]], GREEDY)
    run(tiny_engine(model), [[5]], EVERYTHING)
    assert calls == set(KERNELS)
