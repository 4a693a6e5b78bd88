"""Weights of one byte: how far they err from the weights they stand for, and that a model still speaks."""

import pytest
import torch

from octavo.gpt import LLM, SamplingParams
from octavo.kernels import reference
from octavo.kernels.cpu.linear import linear, pack
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.weights import dequantise

SHAPES = [(96, 64), (257, 77), (33, 40), (1, 1), (5000, 32)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_errs_by_half_a_step_at_most(outputs, inputs, dtype):
    weight = (torch.randn(outputs, inputs) * torch.rand(outputs, 1) * 10).to(dtype)
    packed = pack(weight, "int8")
    step = weight.double().abs().amax(1, keepdim=True) / 127
    most = torch.where(packed.values.abs() == 127, 1.0, 0.5) * step * (1 + 2**-7)  # a scale rounded down cuts the peak
    assert bool(((dequantise(packed, torch.float64) - weight.double()).abs() <= most).all())
    assert packed.values.nbytes == weight.numel()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias, gelu"])
def test_the_product_is_that_of_the_rounded_weight(rows, outputs, inputs, dtype, extras):
    packed = pack(torch.randn(outputs, inputs), "int8")
    x = torch.randn(rows, inputs + 3)[:, :inputs].to(dtype)
    more = (torch.randn(outputs).to(dtype), "gelu") if extras else ()
    assert_accurate(linear(x, packed, *more), reference.linear, x, packed, *more)


def test_rows_of_zeros_and_rows_that_are_not_numbers():
    weight = torch.randn(4, 32)
    weight[1], weight[2, 5] = 0, torch.nan
    packed = pack(weight, "int8")
    for rows in (1, 20):
        y = linear(torch.ones(rows, 32).bfloat16(), packed)
        assert bool(y[:, [0, 1, 3]].isfinite().all())
        assert bool((y[:, 1] == 0).all())
        assert bool(y[:, 2].isnan().all())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of None, 'gelu', .*, not 'mish'"):
        linear(torch.ones(1, 32), pack(torch.ones(2, 32), "int8"), None, "mish")


def test_what_a_weight_stands_for_is_the_reference_s_product():
    packed, x = pack(torch.randn(40, 24), "int8"), torch.randn(3, 24)
    assert_accurate(reference.linear(x, packed), reference.linear, x, dequantise(packed, torch.float64).float())
    assert torch.equal(reference.pack(torch.ones(2, 4), "int8").values, torch.full((2, 4), 127, dtype=torch.int8))


def test_a_dense_weight_in_the_backend_s_layout_stands_for_itself():
    weight = torch.randn(40, 24)
    assert torch.equal(dequantise(pack(weight)), weight)
    assert torch.equal(reference.linear(torch.eye(24), pack(weight)), weight.T)


def test_a_format_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="weights must be auto or one of int8, not 'int3'"):
        pack(torch.ones(2, 4), "int3")


@pytest.mark.parametrize("model", ["dummy:gpt2", "dummy:smollm2"])
def test_a_model_of_each_family_runs_on_half_the_bytes(model, monkeypatch):
    """Tied heads, biases: a whole network, its weights of layers and head in one byte each."""
    from octavo.gpt.models import registry

    small = {"num_layers": 2, "vocab_size": 500, "context_size": 64, "dim": 64, "head_dim": 16, "intermediate_dim": 96}
    heads = {"num_heads": 4, "num_kv_heads": 4 if model == "dummy:gpt2" else 2}
    shape = model.removeprefix("dummy:")
    config = registry.KNOWN_SHAPES[shape].__class__(
        **{**vars(registry.KNOWN_SHAPES[shape]), **small, **heads, "eos_ids": ()}
    )
    monkeypatch.setitem(registry.KNOWN_SHAPES, shape, config)
    params = SamplingParams(temperature=0, max_tokens=5)
    prompts = [[1, 2, 3], list(range(20)), [7]]
    int8 = LLM(model, weights="int8", num_blocks=64)
    assert int8.dtype == torch.bfloat16
    assert all(len(r.outputs[0].token_ids) == 5 for r in int8.generate(prompts, params, use_tqdm=False))
    packed = [module.weight for module in int8.model.modules() if isinstance(getattr(module, "weight", None), tuple)]
    assert len(packed) == 2 * 4
    assert all(weight.values.dtype == torch.int8 for weight in (*packed, int8.model.head))
    assert int8.score(prompts[1]).nll == pytest.approx(
        LLM(model, dtype="float32", num_blocks=64).score(prompts[1]).nll, rel=0.02
    )


def test_dtype_int8_still_means_weights_of_one_byte(monkeypatch):
    from octavo.gpt.models import registry

    from tiny import TINY_GPT2

    monkeypatch.setitem(registry.KNOWN_SHAPES, "tiny", TINY_GPT2)
    with pytest.warns(FutureWarning, match="dtype='int8' is now weights='int8'"):
        old = LLM("dummy:tiny", dtype="int8", num_blocks=16)
    new = LLM("dummy:tiny", weights="int8", num_blocks=16)
    assert old.dtype == new.dtype == torch.bfloat16
    assert torch.equal(old.model.head.values, new.model.head.values)


@pytest.mark.model
def test_smollm2_still_speaks():
    text = "The light of the old tower could be seen from thirty miles away, and sailors were glad of it. " * 3
    int8, bfloat16 = (
        LLM("smollm2", dtype="bfloat16", weights=format, max_model_len=256) for format in ("int8", "auto")
    )
    assert int8.score(text).perplexity == pytest.approx(bfloat16.score(text).perplexity, rel=0.05)
    chat = int8.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0))
    assert chat[0].outputs[0].text == "The capital of France is Paris."
