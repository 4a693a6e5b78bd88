"""Weights of one byte: how far they err from the weights they stand for, and that a model still speaks."""

import pytest
import torch

from octavo.gpt import LLM, SamplingParams
from octavo.kernels import reference
from octavo.kernels.cpu import linear_int8
from octavo.kernels.ops import load, with_int8_weights

SHAPES = [(96, 64), (257, 77), (33, 40), (1, 1), (5000, 32)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def dense(weight: linear_int8.Int8Weight) -> torch.Tensor:
    return weight.values.double() * weight.scale.double().unsqueeze(1)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_errs_by_half_a_step_at_most(outputs, inputs, dtype):
    weight = (torch.randn(outputs, inputs) * torch.rand(outputs, 1) * 10).to(dtype)
    packed = linear_int8.pack(weight)
    step = weight.double().abs().amax(1, keepdim=True) / 127
    most = torch.where(packed.values.abs() == 127, 1.0, 0.5) * step * (1 + 2**-7)  # a scale rounded down cuts the peak
    assert bool(((dense(packed) - weight.double()).abs() <= most).all())
    assert packed.values.nbytes == weight.numel()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 40])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias, gelu, residual"])
def test_the_product_is_that_of_the_rounded_weight(rows, outputs, inputs, extras):
    packed = linear_int8.pack(torch.randn(outputs, inputs))
    x = torch.randn(rows, inputs + 3)[:, :inputs].bfloat16()
    more = (torch.randn(outputs).bfloat16(), "gelu", torch.randn(rows, outputs).bfloat16()) if extras else ()
    got = linear_int8.linear(x, packed, *more)
    assert got.shape == (rows, outputs)
    assert got.dtype == torch.bfloat16
    if rows:
        wide = [value.double() if isinstance(value, torch.Tensor) else value for value in more]
        product = x.double() @ dense(packed).T
        true = reference.linear(x.double(), dense(packed), *wide)
        budget = 4 * 2**-9 * max(product.abs().max(), true.abs().max())  # product, scale, bias and residual round once
        assert (got.double() - true).abs().max() <= budget


def test_rows_of_zeros_and_rows_that_are_not_numbers():
    weight = torch.randn(4, 32)
    weight[1], weight[2, 5] = 0, torch.nan
    packed = linear_int8.pack(weight)
    for rows in (1, 20):
        y = linear_int8.linear(torch.ones(rows, 32).bfloat16(), packed)
        assert bool(y[:, [0, 1, 3]].isfinite().all())
        assert bool((y[:, 1] == 0).all())
        assert bool(y[:, 2].isnan().all())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be None or 'gelu', not 'relu'"):
        linear_int8.linear(torch.ones(1, 32), linear_int8.pack(torch.ones(2, 32)), None, "relu")


def test_only_the_cpu_backend_has_them():
    with pytest.raises(ValueError, match="dtype int8 needs backend cpu, not reference"):
        with_int8_weights(load("reference"))


@pytest.mark.parametrize("model", ["dummy:gpt2", "dummy:smollm2"])
def test_a_model_of_each_family_runs_on_half_the_bytes(model, monkeypatch):
    """Tied heads, biases: a whole network, its weights of layers and head in one byte each."""
    from octavo.gpt.loading import loader

    small = {"num_layers": 2, "vocab_size": 500, "context_size": 64, "dim": 64, "head_dim": 16, "hidden_dim": 96}
    heads = {"num_heads": 4, "num_kv_heads": 4 if model == "dummy:gpt2" else 2}
    shape = model.removeprefix("dummy:")
    config = loader.KNOWN_SHAPES[shape].__class__(
        **{**vars(loader.KNOWN_SHAPES[shape]), **small, **heads, "eos_ids": ()}
    )
    monkeypatch.setitem(loader.KNOWN_SHAPES, shape, config)
    params = SamplingParams(temperature=0, max_tokens=5)
    prompts = [[1, 2, 3], list(range(20)), [7]]
    int8 = LLM(model, dtype="int8", num_blocks=64)
    assert int8.dtype == torch.bfloat16
    assert all(len(r.outputs[0].token_ids) == 5 for r in int8.generate(prompts, params, use_tqdm=False))
    packed = [module.weight for module in int8.model.modules() if isinstance(getattr(module, "weight", None), tuple)]
    assert len(packed) == 2 * 4
    assert all(weight.values.dtype == torch.int8 for weight in (*packed, int8.model.head))
    assert int8.score(prompts[1]).nll == pytest.approx(
        LLM(model, dtype="float32", num_blocks=64).score(prompts[1]).nll, rel=0.02
    )


@pytest.mark.model
def test_smollm2_still_speaks():
    text = "The light of the old tower could be seen from thirty miles away, and sailors were glad of it. " * 3
    int8, bfloat16 = (LLM("smollm2", dtype=name, max_model_len=256) for name in ("int8", "bfloat16"))
    assert int8.score(text).perplexity == pytest.approx(bfloat16.score(text).perplexity, rel=0.05)
    chat = int8.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0))
    assert chat[0].outputs[0].text == "The capital of France is Paris."
