"""The training view on a backend's kernels: the engine's own bits forward, the reference's gradients backward."""

from dataclasses import replace

import pytest
import torch

from octavo.gpt.models.registry import family_of
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE
from octavo.kernels.training import trainable

from tiny import TINY, tiny_engine, tiny_model

IDS = torch.tensor([[(5 * i * i + 3) % 97 for i in range(11)]])


CASES = [("cpu", "gpt2"), ("cpu", "llama"), *(pytest.param("triton", each, marks=pytest.mark.slow) for each in TINY)]


@pytest.mark.parametrize(("backend", "family"), CASES)
def test_the_engine_s_log_probabilities_to_the_bit(backend: str, family: str) -> None:
    ops = backends.load(backend)
    served = tiny_model(TINY[family], ops)
    served.pack()
    engine = tiny_engine(served, max_num_batched_tokens=8)
    generated = engine.add(IDS[0].tolist(), SamplingParams(temperature=0, max_tokens=3, logprobs=0, prompt_logprobs=0))
    while engine.has_unfinished:
        engine.step()
    completion = generated.outputs[0]
    text = [*IDS[0].tolist(), *completion.token_ids]
    entries = [*generated.prompt_logprobs[1:], *completion.logprobs]
    logits = tiny_model(TINY[family], trainable(ops)).loss(torch.tensor([text])).logits[0]
    for row, token_id, entry in zip(logits[:-1], text[1:], entries, strict=True):
        ids, logprobs = ops.top_logprobs(row[None], 97)
        assert entry[token_id].logprob == logprobs[ids == token_id].item()


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_gradients_are_the_reference_s(backend: str, family: str) -> None:
    config = replace(TINY[family], num_layers=1)
    models = [family_of(config).network(config, ops, 2) for ops in (trainable(backends.load(backend)), REFERENCE)]
    for model in models:
        model.loss(IDS).loss.backward()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
