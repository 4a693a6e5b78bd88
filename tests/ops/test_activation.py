"""bias_gelu and silu_mul against the reference."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.triton import activation

from guarded import DEVICE, FLOATS, far_apart, noise, strided
from numerics import assert_accurate

pytestmark = pytest.mark.usefixtures("guarded_memory")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden_dim", [1, 50, 576, 1030, 3072])
def test_bias_gelu_is_accurate(dtype, hidden_dim):
    x = strided(noise(3, hidden_dim, dtype=dtype) * 3)
    bias = noise(hidden_dim, dtype=dtype, seed=1)
    assert_accurate(activation.bias_gelu(x, bias), reference.bias_gelu, x, bias)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden_dim", [1, 25, 576, 1030, 1536])
def test_silu_mul_is_accurate(dtype, hidden_dim):
    gate_up = strided(noise(3, 2 * hidden_dim, dtype=dtype) * 3)
    assert_accurate(activation.silu_mul(gate_up), reference.silu_mul, gate_up)


EXTREMES = [-3e38, -1e20, -1e4, -88.0, -11.0, -0.0, 0.0, 1e-30, 11.0, 88.0, 1e4, 1e20, 3e38]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy warns where x * x becomes inf, as it may
def test_extremes_neither_overflow_nor_become_nan():
    x = torch.tensor([EXTREMES], device=DEVICE)
    zero = torch.zeros(len(EXTREMES), device=DEVICE)
    assert_accurate(activation.bias_gelu(x, zero), reference.bias_gelu, x, zero)
    gate_up = torch.cat([x, torch.ones_like(x)], 1)
    assert_accurate(activation.silu_mul(gate_up), reference.silu_mul, gate_up)


def test_a_row_alone_has_the_bits_it_has_in_company():
    x, bias = noise(5, 64, dtype=torch.float32), noise(64, dtype=torch.float32, seed=1)
    assert torch.equal(activation.bias_gelu(x[2:3], bias), activation.bias_gelu(x, bias)[2:3])
    assert torch.equal(activation.silu_mul(x[2:3]), activation.silu_mul(x)[2:3])


def test_catalogue_5_rows_beyond_2_31():
    x, bias = noise(3, 8, dtype=torch.float16), noise(8, dtype=torch.float16, seed=1)
    assert_accurate(activation.bias_gelu(far_apart(x), bias), reference.bias_gelu, x, bias)
    assert_accurate(activation.silu_mul(far_apart(x)), reference.silu_mul, x)


def test_catalogue_26_no_tokens():
    x, bias = noise(0, 64, dtype=torch.float16), noise(64, dtype=torch.float16)
    assert activation.bias_gelu(x, bias).shape == (0, 64)
    assert activation.silu_mul(x).shape == (0, 32)


X, B = torch.zeros(2, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("^x must be 2-D .*8", lambda: activation.bias_gelu(B, B)),
        ("^x must be 2-D .*float64", lambda: activation.bias_gelu(X.double(), B)),
        ("^x must have a contiguous last dimension", lambda: activation.bias_gelu(torch.zeros(8, 2).T, B)),
        ("^bias must be .*8.*7", lambda: activation.bias_gelu(X, torch.zeros(7))),
        ("^bias must be .*float32.*float16", lambda: activation.bias_gelu(X, B.half())),
        ("^bias must be .*cpu.*meta", lambda: activation.bias_gelu(X, B.to("meta"))),
        ("^gate_up must be .*2, 7", lambda: activation.silu_mul(torch.zeros(2, 7))),
        ("^gate_up must be 2-D .*int64", lambda: activation.silu_mul(X.long())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(match, call):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_is_accurate_at_size(dtype):
    x, bias = noise(4096, 3072, dtype=dtype), noise(3072, dtype=dtype, seed=1)
    assert_accurate(activation.bias_gelu(x, bias), reference.bias_gelu, x, bias)
    assert_accurate(activation.silu_mul(x), reference.silu_mul, x)


@pytest.mark.gpu
def test_catalogue_5_more_than_2_31_values():
    gate_up = torch.zeros(2**31 // 4096 + 2, 4096, dtype=torch.bfloat16, device=DEVICE)
    gate_up[-1] = noise(4096, dtype=torch.bfloat16)
    y = activation.silu_mul(gate_up)
    assert torch.equal(y[-1:], activation.silu_mul(gate_up[-1:].clone()))
    assert not y[:-1].any()
