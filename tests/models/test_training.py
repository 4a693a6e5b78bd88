"""The training view: a tiny GPT learns ABC -> CDF and the engine decodes pairs it never saw."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from octavo.gpt.loading.loader import load_model
from octavo.gpt.models.batch import dense_batch
from octavo.gpt.models.families.gpt2 import GPT2, GPT2Config
from octavo.gpt.models.families.llama import Llama, LlamaConfig
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels.ops import REFERENCE

from tiny import TINY, run, tiny_engine, tiny_model

LETTERS = "ABCDEFGHIJK>"
SHIFTS = (2, 2, 3)  # the rule: the first two letters move by two, the third by three
ARROW = LETTERS.index(">")

FAMILIES = {"gpt2": GPT2, "llama": Llama}
CONFIGS = {"gpt2": GPT2Config, "llama": LlamaConfig}


def spell(ids: list[int]) -> str:
    return "".join(LETTERS[i] for i in ids)


def answer(triple: tuple[int, ...]) -> list[int]:
    return [letter + shift for letter, shift in zip(triple, SHIFTS, strict=True)]


def split() -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Rows `a b c > x y z` to learn from, and triples that are kept back, A B C among them."""
    triples = list(itertools.product(range(8), repeat=3))
    unseen = [t for i, t in enumerate(triples) if i % 7 == 0 or t == (0, 1, 2)]
    rows = [[*t, ARROW, *answer(t)] for t in triples if t not in unseen]
    return torch.tensor(rows), unseen


def train(model, rows: torch.Tensor, steps: int) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    targets = F.pad(rows[:, 1:], (0, 1), value=-100)
    targets[:, :3] = -100  # the question is given, not learned
    for _ in range(steps):
        index = torch.randint(len(rows), (64,), generator=generator)
        loss = model.loss(rows[index], targets[index]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_abc_becomes_cdf(family):
    config = CONFIGS[family](
        vocab_size=len(LETTERS), context_size=16, dim=32, num_layers=2, num_heads=4, num_kv_heads=4,
        head_dim=8, intermediate_dim=64,
    )  # fmt: skip
    rows, unseen = split()
    model = FAMILIES[family](config, seed=1)
    assert train(model, rows, 300) < 0.01
    model.eval().requires_grad_(False)
    engine = tiny_engine(model)
    question = torch.tensor([[*(0, 1, 2), ARROW]])
    for letter in "CDF":  # step by step: each token seen, then fed back
        step = engine.add(question[0].tolist(), SamplingParams(temperature=0, max_tokens=1))
        engine.step()
        assert spell(step.outputs[0].token_ids) == letter
        question = F.pad(question, (0, 1), value=LETTERS.index(letter))
    requests = [engine.add([*triple, ARROW], SamplingParams(temperature=0, max_tokens=3)) for triple in unseen]
    while engine.has_unfinished:
        engine.step()
    got = [spell(request.outputs[0].token_ids) for request in requests]
    assert got == [spell(answer(triple)) for triple in unseen]


@pytest.mark.parametrize("family", TINY)
def test_the_loss_is_the_mean_negative_log_likelihood(family):
    model = FAMILIES[family](TINY[family], seed=2)
    ids = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(0))
    output = model.loss(ids)
    assert output.logits.shape == (3, 11, 97)
    likelihood = torch.log_softmax(output.logits[:, :-1], -1).gather(2, ids[:, 1:, None])
    torch.testing.assert_close(output.loss, -likelihood.mean())
    assert model.loss(ids[:, :1]).loss is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_each_position_sees_only_its_past():
    model = GPT2(TINY["gpt2"], seed=3)
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 97
    before, after = model.loss(ids).logits, model.loss(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_hooks_of_a_loaded_model_fire_when_it_is_called():
    """PyTorch's hooks, torch.compile and tensor parallelism go through calling the model, which runs its forward."""
    loaded = load_model("dummy:gpt2", REFERENCE, "float32", "cpu").model
    seen = []
    loaded.register_forward_pre_hook(lambda module, arguments: seen.append("before"))
    loaded.register_forward_hook(lambda module, arguments, hidden: seen.append(tuple(hidden.shape)))
    hidden = loaded(dense_batch(torch.tensor([[1, 2, 3]])), None)
    assert seen == ["before", (3, loaded.config.dim)]
    logits = loaded.loss(torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(logits[0], loaded.logits(hidden))
    assert len(seen) == 4


def test_the_engine_s_steps_run_hooks():
    model, seen = tiny_model(TINY["llama"]), []
    model.register_forward_hook(lambda module, arguments, hidden: seen.append(len(hidden)))
    run(tiny_engine(model), [[1, 2, 3]], SamplingParams(temperature=0, max_tokens=3))
    assert seen == [3, 1, 1]
