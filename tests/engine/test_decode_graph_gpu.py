"""Decode steps as CUDA graphs: the eager step's bits, whatever the number of rows, and a new draw with each replay."""

import pytest
import torch

from octavo.gpt import LLM, SamplingParams

pytestmark = pytest.mark.gpu
LIMITS = {"dtype": "bfloat16", "max_model_len": 256, "max_num_seqs": 20, "num_blocks": 400}
KINDS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=-1, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=2**63 - 1, top_k=40, top_p=0.9, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=0, repetition_penalty=1.2, logprobs=3, max_tokens=12, ignore_eos=True),
]


@pytest.fixture(scope="module", params=["dummy:gpt2", "dummy:smollm2"])
def models(request):
    """The same model with graphs from the start, with graphs made on demand, and without."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return [LLM(request.param, cuda_graphs=when, **LIMITS) for when in ("startup", "lazy", "off")]


def results(llm, prompts, params):
    outputs = [request.outputs[0] for request in llm.generate(prompts, params, use_tqdm=False)]
    return [(output.token_ids, output.logprobs) for output in outputs]


@pytest.mark.parametrize("num_rows", [*range(1, 10), 16, 17, 20])
def test_graph_equals_eager(models, num_rows):
    """The bits of tokens and log-probabilities, at every number of rows around the captured sizes."""
    prompts = [[(11 * i + 3 * j) % 5000 for j in range(5 + 7 * i)] for i in range(num_rows)]
    params = [KINDS[i % len(KINDS)] for i in range(num_rows)]
    startup, lazy, eager = (results(llm, prompts, params) for llm in models)
    assert startup == lazy == eager


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63 - 1])
def test_replays_draw_anew(models, seed):
    """A captured draw depends on the position; the ids are the eager ones for the same seed."""
    params = SamplingParams(seed=seed, temperature=50.0, max_tokens=40, ignore_eos=True)
    (token_ids, _), (expected, _) = (results(llm, [[1, 2, 3]], params)[0] for llm in (models[0], models[2]))
    assert token_ids == expected
    assert len(set(token_ids)) > 35  # nearly uniform over the vocabulary: a frozen draw would repeat one id


def test_what_capturing_cost_is_told(models):
    startup, lazy, eager = (llm.stats() for llm in models)
    assert startup["graphs_captured"] >= lazy["graphs_captured"] > 0 == eager["graphs_captured"]
    assert startup["graph_seconds"] > 0
    assert startup["graph_bytes"] >= 0
