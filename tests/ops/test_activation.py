"""silu_mul against the reference."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.inputs import DEVICE, FLOATS, noise
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton import activation

from guarded import far_apart

pytestmark = pytest.mark.usefixtures("guarded_memory")


EXTREMES = [-3e38, -1e20, -1e4, -88.0, -11.0, -0.0, 0.0, 1e-30, 11.0, 88.0, 1e4, 1e20, 3e38]


def test_a_row_alone_has_the_bits_it_has_in_company():
    x = noise(5, 64, dtype=torch.float32)
    assert torch.equal(activation.silu_mul(x[2:3]), activation.silu_mul(x)[2:3])


def test_rows_beyond_2_31():
    x = noise(3, 8, dtype=torch.float16)
    assert_accurate(activation.silu_mul(far_apart(x)), reference.silu_mul, x)


def test_no_tokens():
    x = noise(0, 64, dtype=torch.float16)
    assert activation.silu_mul(x).shape == (0, 32)


X = torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("^gate_up must be 2-D .*8", lambda: activation.silu_mul(torch.zeros(8))),
        ("^gate_up must be 2-D .*float64", lambda: activation.silu_mul(X.double())),
        ("^gate_up must have a contiguous last dimension", lambda: activation.silu_mul(torch.zeros(8, 2).T)),
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
    x = noise(4096, 3072, dtype=dtype)
    assert_accurate(activation.silu_mul(x), reference.silu_mul, x)


@pytest.mark.gpu
def test_more_than_2_31_values():
    gate_up = torch.zeros(2**31 // 4096 + 2, 4096, dtype=torch.bfloat16, device=DEVICE)
    gate_up[-1] = noise(4096, dtype=torch.bfloat16)
    y = activation.silu_mul(gate_up)
    assert torch.equal(y[-1:], activation.silu_mul(gate_up[-1:].clone()))
    assert not y[:-1].any()
