"""Weights in panels: what they stand for, that each row's product has the same bits in any company, and that a model
still speaks in every format."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.models.base import Linear
from octavo.kernels import reference
from octavo.kernels.cpu.linear import linear, pack
from octavo.kernels.cpu.panels.memory import WeightMemory
from octavo.kernels.cpu.panels.pack import Panels
from octavo.kernels.testing.numerics import assert_within
from octavo.kernels.weights import BLOCK_FORMATS, FORMATS, dequantise, round_activations

from checkpoints import random_blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(96, 64), (257, 96), (33, 320), (40, 32), (70, 2080)]
ROWS = (1, 2, 3, 4, 5, 8, 12, 13, 96, 97, 200)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (257, 77), (5, 1)], ids=str)
def test_a_dense_weight_in_panels_stands_for_itself(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    packed = pack(weight)
    assert isinstance(packed, Panels)
    assert (packed.out_features, packed.in_features) == shape
    assert torch.equal(dequantise(packed), weight)
    x = torch.eye(shape[1]).to(dtype)
    assert torch.equal(reference.linear(x, packed), weight.T)


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_in_panels_stand_for_what_the_blocks_do(shape, format):
    blocks = random_blocks(*shape, format)
    packed = pack(blocks)
    assert isinstance(packed, Panels)
    assert torch.equal(dequantise(packed), dequantise(blocks))
    whole = -(-shape[0] // 32) * 32
    assert packed.data.numel() == blocks.blocks.numel() * whole // shape[0]


@pytest.mark.parametrize("format", BLOCK_FORMATS)
@pytest.mark.parametrize(
    ("rows", "shape"), [(0, SHAPES[0]), (1, SHAPES[4]), (7, SHAPES[1]), (40, SHAPES[2]), (13, SHAPES[3])]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_product_is_that_of_the_rounded_weight_and_the_rounded_rows(rows, shape, dtype, format):
    """Nothing errs but the sum and the last rounding: sums of whole numbers are exact."""
    packed = pack(random_blocks(*shape, format))
    x = torch.randn(rows, packed.in_features + 3)[:, : packed.in_features].to(dtype)
    bias, seen = torch.randn(shape[0]).to(dtype), round_activations(x)
    oracle = reference.linear(seen.double(), packed, bias.double(), "gelu")
    twin = reference.linear(seen, packed, bias.float(), "gelu").to(dtype)
    assert_within(linear(x, packed, bias, "gelu"), oracle, twin)


@pytest.mark.parametrize("format", [None, *BLOCK_FORMATS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_company_on_any_number_of_threads(dtype, format):
    weight = torch.randn(260, 1056).to(dtype) if format is None else random_blocks(260, 1056, format)
    packed, bias = pack(weight), torch.randn(260).to(dtype)
    x = torch.randn(max(ROWS), packed.in_features).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([linear(row, packed, bias, "silu") for row in x.split(1)])
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for rows in ROWS:
                assert torch.equal(linear(x[:rows], packed, bias, "silu"), alone[:rows]), (num_threads, rows)
                behind = linear(x[-rows:], packed, bias, "silu")
                assert torch.equal(behind, alone[-rows:]), (num_threads, rows)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("format", [None, *BLOCK_FORMATS])
def test_a_row_that_is_not_finite_spoils_no_other(format):
    packed = pack(torch.randn(40, 96) if format is None else random_blocks(40, 96, format))
    x = torch.randn(9, packed.in_features)
    expected = linear(x, packed)
    x[3, 40], x[5, 0] = torch.nan, torch.inf
    y = linear(x, packed)
    assert not bool(y[[3, 5]].isfinite().any())
    others = [0, 1, 2, 4, 6, 7, 8]
    assert torch.equal(y[others], expected[others])


AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+ssse3,+sse4.2"}
ELSEWHERE = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from checkpoints import random_blocks
from octavo.kernels.cpu.linear import linear, pack
torch.manual_seed(0)
packed = pack(random_blocks(40, 512, sys.argv[1]))
print(linear(torch.randn(3, 512).bfloat16(), packed).float().sum(1).tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86")
@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_a_machine_without_avx512_gives_the_same_bits(format):
    """Sums of whole numbers are exact, and what follows is in the same order."""
    program = [sys.executable, "-c", ELSEWHERE, format, str(Path(random_blocks.__code__.co_filename).parent)]
    done = [
        subprocess.run(program, env={**os.environ, **extra}, capture_output=True, text=True, check=True).stdout
        for extra in ({}, AVX2)
    ]
    assert done[0] == done[1]


def test_rows_of_zeros_are_zeros():
    packed = pack(torch.randn(40, 96), "q4_1")
    assert bool((linear(torch.zeros(3, 96), packed) == 0).all())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of None, 'gelu', .*, not 'mish'"):
        linear(torch.ones(1, 32), pack(torch.ones(2, 32), "q8_0"), None, "mish")


def test_a_format_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="weights must be auto or one of q8_0, q4_0, q4_1, not 'int3'"):
        pack(torch.ones(2, 4), "int3")


def test_a_weight_without_whole_blocks_stays_dense():
    weight = torch.randn(8, 40)
    assert torch.equal(dequantise(pack(weight, "q8_0")), weight)


@pytest.mark.parametrize("model", ["dummy:gpt2", "dummy:smollm2"])
def test_a_model_of_each_family_runs_on_a_quarter_of_the_bytes(model, monkeypatch):
    """Tied heads, biases: a whole network, its weights of layers and head in a byte each, and a little."""
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
    q8 = LLM(model, dtype="float32", weights="q8_0", num_blocks=64)
    assert all(len(r.outputs[0].token_ids) == 5 for r in q8.generate(prompts, params, use_tqdm=False))
    packed = [module.weight for module in q8.model.modules() if isinstance(module, Linear)]
    assert len(packed) == 2 * 4
    assert all(weight.format == "q8_0" for weight in (*packed, q8.model.head))
    assert q8.score(prompts[1]).nll == pytest.approx(
        LLM(model, dtype="float32", num_blocks=64).score(prompts[1]).nll, rel=0.02
    )


def test_int8_still_means_weights_of_one_byte(monkeypatch):
    from octavo.gpt.models import registry

    from tiny import TINY_GPT2

    monkeypatch.setitem(registry.KNOWN_SHAPES, "tiny", TINY_GPT2)
    new = LLM("dummy:tiny", weights="q8_0", num_blocks=16)
    for old in ({"dtype": "int8"}, {"weights": "int8"}):
        with pytest.warns(FutureWarning, match="int8 is now weights='q8_0'"):
            llm = LLM("dummy:tiny", num_blocks=16, **old)
        assert llm.dtype == new.dtype
        assert torch.equal(dequantise(llm.model.head), dequantise(new.model.head))


@pytest.mark.model
@pytest.mark.parametrize("format", FORMATS)
def test_smollm2_still_speaks(format):
    """Nibbles without a minimum cost this small network 12 % of perplexity; that is the format's."""
    text = "The light of the old tower could be seen from thirty miles away, and sailors were glad of it. " * 3
    packed, dense = (LLM("smollm2", dtype="float32", weights=each, max_model_len=256) for each in (format, "dense"))
    assert packed.score(text).perplexity == pytest.approx(dense.score(text).perplexity, rel=0.15)
    chat = packed.chat([{"role": "user", "content": "What is the capital of Japan?"}], SamplingParams(temperature=0))
    assert "Tokyo" in chat[0].outputs[0].text


def test_weights_may_be_packed_in_any_mode_of_pytorch(monkeypatch):
    monkeypatch.setattr("octavo.kernels.cpu.panels.pack.MEMORY", WeightMemory())  # whose first chunk is taken now
    weight = torch.randn(33, 320)
    with torch.inference_mode():
        first = pack(weight, "q8_0")
    again = pack(weight, "q8_0")
    assert torch.equal(first.data, again.data)
