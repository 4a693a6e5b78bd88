"""layer_norm, rms_norm and their fused forms against the reference, row by row."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.inputs import DEVICE, FLOATS, noise, strided
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton import launch, norm

from guarded import far_apart

pytestmark = pytest.mark.usefixtures("guarded_memory")
EPS = 1e-5
DIMS = [1, 50, 64, 576, 768, 1600]
# The interpreter cuts float32 down to bfloat16 where hardware rounds.
ROUNDED = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def arguments(op: str, num_tokens: int, dim: int, dtype: torch.dtype) -> tuple:
    """Strided inputs for one of the four ops."""
    x, residual = (strided(noise(num_tokens, dim, dtype=dtype, seed=seed)) for seed in (1, 2))
    weight, bias = (noise(dim, dtype=dtype, seed=seed) for seed in (3, 4))
    return (
        x,
        *([residual] if op.startswith("add") else []),
        weight,
        *([bias] if op.endswith("layer_norm") else []),
        EPS,
    )


OPS = ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"]


@pytest.mark.parametrize("op", OPS)
def test_a_row_alone_has_the_bits_it_has_in_company(op):
    args = arguments(op, 5, 96, torch.float32)
    together = getattr(norm, op)(*args)
    alone = getattr(norm, op)(*(arg[3:4] if getattr(arg, "ndim", 0) == 2 else arg for arg in args))
    for row, rows in zip(alone, together, strict=True) if isinstance(alone, tuple) else [(alone, together)]:
        assert torch.equal(row, rows[3:4])


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_the_fused_form_is_an_add_and_then_a_norm(op, dtype):
    x, residual, *rest = arguments("add_" + op, 4, 72, dtype)
    y, total = getattr(norm, "add_" + op)(x, residual, *rest)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, getattr(norm, op)(total, *rest))


def test_a_large_mean_does_not_cancel():
    x = noise(4, 768, dtype=torch.float32) + 1000
    weight, bias = torch.ones(768, device=DEVICE), torch.zeros(768, device=DEVICE)
    assert_accurate(norm.layer_norm(x, weight, bias, EPS), reference.layer_norm, x, weight, bias, EPS)


@pytest.mark.parametrize("op", OPS)
def test_no_tokens(op):
    args = arguments(op, 0, 64, torch.float16)
    results = getattr(norm, op)(*args)
    assert all(result.shape == (0, 64) for result in (results if isinstance(results, tuple) else [results]))


@pytest.mark.parametrize("op", OPS)
def test_rows_beyond_2_31(op):
    args = arguments(op, 3, 8, torch.float16)
    apart = (far_apart(arg) if getattr(arg, "ndim", 0) == 2 else arg for arg in args)
    assert_accurate(getattr(norm, op)(*apart), getattr(reference, op), *args)


def test_the_widest_row_fits_one_program():
    dim = launch.NORM_MAX_DIM
    x, weight = noise(1, dim, dtype=torch.float32), noise(dim, dtype=torch.float32, seed=1)
    assert_accurate(norm.rms_norm(x, weight, EPS), reference.rms_norm, x, weight, EPS)


X, W = torch.zeros(2, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("^x must be .*2, 8, 1, 1", lambda: norm.rms_norm(X[..., None, None], W, EPS)),
        ("^x must be .*2, 8, 1", lambda: norm.add_rms_norm(X.unsqueeze(-1), X.unsqueeze(-1), W, EPS)),
        ("^x must be .*float64", lambda: norm.rms_norm(X.double(), W.double(), EPS)),
        ("^x must have a dim .*40000", lambda: norm.rms_norm(torch.zeros(1, 40000), torch.zeros(40000), EPS)),
        ("^x must have a contiguous last dimension", lambda: norm.rms_norm(torch.zeros(8, 2).T, W, EPS)),
        ("^residual must be .*2, 8.*3, 8", lambda: norm.add_rms_norm(X, torch.zeros(3, 8), W, EPS)),
        ("^residual must be torch.float32.*torch.float16", lambda: norm.add_rms_norm(X, X.half(), W, EPS)),
        ("^weight must be .*8.*9", lambda: norm.layer_norm(X, torch.zeros(9), W, EPS)),
        ("^weight must be torch.float32 on cpu.* on meta", lambda: norm.layer_norm(X, W.to("meta"), W, EPS)),
        ("^bias must be .*8.*7", lambda: norm.add_layer_norm(X, X, W, torch.zeros(7), EPS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(match, call):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [576, 768, 4096, 16384])
def test_is_accurate_at_size(dtype, dim):
    for op in OPS:
        args = arguments(op, 4096, dim, dtype)
        assert_accurate(getattr(norm, op)(*args), getattr(reference, op), *args)


@pytest.mark.gpu
def test_more_than_2_31_values():
    dim = 4096
    x = torch.zeros(2**31 // dim + 2, dim, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = noise(dim, dtype=torch.bfloat16)
    weight = noise(dim, dtype=torch.bfloat16, seed=1)
    y = norm.rms_norm(x, weight, EPS)
    assert torch.equal(y[-1:], norm.rms_norm(x[-1:].clone(), weight, EPS))
    assert not y[:-1].any()
