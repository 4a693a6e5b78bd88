"""The cpu backend on the cases that every backend has to pass, and what is its own."""

import pytest
import torch

from octavo.kernels import backends, reference, testing
from octavo.kernels.cpu import kv_cache, linear, norm
from octavo.kernels.ops import OP_NAMES
from octavo.kernels.testing.inputs import FLOATS, noise

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", [case for op in OP_NAMES if op != "pack" for case in testing.cases(op)], ids=str)
def test_case(case):
    case.check(backends.load("cpu"), CPU)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "relu2"])
def test_linear_takes_a_weight_that_nobody_packed(activation, dtype):
    x, weight = noise(7, 77, dtype=dtype, device=CPU), noise(257, 77, dtype=dtype, seed=1, device=CPU)
    got = linear.linear(x, weight, None, activation)
    testing.assert_accurate(got, reference.linear, x, weight, None, activation)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_sum_that_a_norm_returns_is_rounded_once(mean, dtype):
    x, residual = ((noise(40, 576, dtype=dtype, seed=seed, device=CPU) + mean) for seed in (1, 2))
    weight, bias = (noise(576, dtype=dtype, seed=seed, device=CPU) for seed in (3, 4))
    y, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    testing.assert_accurate(y, reference.rms_norm, total, weight, 1e-5)
    y, total = norm.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(total, x + residual)
    testing.assert_accurate(y, reference.layer_norm, total, weight, bias, 1e-5)


def test_a_cache_with_strides_of_its_own_is_refused_before_anything_is_written():
    """Slots were counted as if it were contiguous: other tokens' keys were overwritten without a word."""
    pool = torch.zeros(4, 2, 8, 3, 5)
    k = torch.ones(1, 3, 5)
    with pytest.raises(ValueError, match="k_cache and v_cache must be contiguous"):
        kv_cache.write_kv(k, k, pool[:, 0], pool[:, 1], torch.tensor([9], dtype=torch.int32))
    assert not pool.any()
