"""rope against the reference, in both pairings."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.testing.inputs import DEVICE, FLOATS, noise
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton import rope

from guarded import far_apart

pytestmark = pytest.mark.usefixtures("guarded_memory")
PAIRINGS = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])


def tables(context_size: int, head_dim: int) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(context_size).float(), frequencies).to(DEVICE)
    return angles.cos(), angles.sin()


def fused(num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple:
    """q and k as views of one fused projection."""
    heads = noise(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    return heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]


@PAIRINGS
def test_position_0_changes_nothing(interleaved):
    q, k = fused(2, 3, 1, 16, torch.float16)
    positions = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    q_out, k_out = rope.rope(q, k, positions, *tables(4, 16), interleaved)
    assert torch.equal(q_out, q)
    assert torch.equal(k_out, k)


@PAIRINGS
def test_a_token_alone_has_the_bits_it_has_in_company(interleaved):
    q, k = fused(5, 6, 2, 24, torch.float32)
    cos, sin = tables(64, 24)
    positions = torch.tensor([3, 60, 9, 9, 1], device=DEVICE)
    together = rope.rope(q, k, positions, cos, sin, interleaved)
    alone = rope.rope(q[2:3], k[2:3], positions[2:3], cos, sin, interleaved)
    assert all(torch.equal(one, all_[2:3]) for one, all_ in zip(alone, together, strict=True))


@PAIRINGS
@pytest.mark.parametrize("position", [-1, 4, 2**30])
def test_a_position_outside_the_tables_is_nan_in_its_own_row_only(interleaved, position):
    q, k = fused(3, 2, 2, 16, torch.float32)
    cos, sin = tables(4, 16)
    positions = torch.tensor([1, position, 2], dtype=torch.int32, device=DEVICE)
    legal = [0, 2]
    expected = rope.rope(q[legal], k[legal], positions[legal], cos, sin, interleaved)
    for rows, good in zip(rope.rope(q, k, positions, cos, sin, interleaved), expected, strict=True):
        assert bool(rows[1].isnan().all())
        assert torch.equal(rows[legal], good)


@PAIRINGS
def test_rows_beyond_2_31(interleaved):
    q, k = (noise(3, 2, 8, dtype=torch.float16, seed=seed) for seed in (0, 1))
    rest = (torch.arange(3, device=DEVICE), *tables(4, 8), interleaved)
    assert_accurate(rope.rope(far_apart(q), far_apart(k), *rest), reference.rope, q, k, *rest)


def test_no_tokens():
    q, k = fused(0, 2, 1, 8, torch.float16)
    q_out, k_out = rope.rope(q, k, torch.zeros(0, dtype=torch.int32, device=DEVICE), *tables(4, 8))
    assert (q_out.shape, k_out.shape) == (q.shape, k.shape)


Q, K, P, T = torch.zeros(2, 4, 8), torch.zeros(2, 2, 8), torch.zeros(2, dtype=torch.int32), torch.zeros(16, 4)


@pytest.mark.parametrize(
    ("match", "args"),
    [
        ("^q must be .*2, 8", (Q[:, 0], K, P, T, T)),
        ("^q must be .*2, 4, 7", (Q[..., :7], K[..., :7], P, T, T)),
        ("^q must be .*float64", (Q.double(), K, P, T, T)),
        ("^k must be .*3, 2, 8", (Q, torch.zeros(3, 2, 8), P, T, T)),
        ("^k must be .*float16", (Q, K.half(), P, T, T)),
        ("^positions must be .*3", (Q, K, torch.zeros(3, dtype=torch.int32), T, T)),
        ("^positions must be .*float32", (Q, K, P.float(), T, T)),
        ("^cos must be .*4.*16, 8", (Q, K, P, torch.zeros(16, 8), T)),
        ("^cos must be .*float16", (Q, K, P, T.half(), T)),
        ("^sin must be .*15, 4", (Q, K, P, T, T[:15])),
        ("^sin must be contiguous", (Q, K, P, T, torch.zeros(4, 16).T)),
        ("^k must be torch.float32 on cpu", (Q, K.to("meta"), P, T, T)),
        ("^q must have a contiguous last dimension", (torch.zeros(2, 8, 4).mT, K, P, T, T)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(match, args):
    with pytest.raises(ValueError, match=match):
        rope.rope(*args)


@pytest.mark.gpu
@PAIRINGS
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(9, 3, 64), (32, 8, 128), (16, 8, 256)])
def test_is_accurate_at_size(interleaved, dtype, num_heads, num_kv_heads, head_dim):
    q, k = fused(4096, num_heads, num_kv_heads, head_dim, dtype)
    cos, sin = tables(8192, head_dim)
    positions = torch.arange(8191, 4095, -1, dtype=torch.int32, device=DEVICE)
    y = rope.rope(q, k, positions, cos, sin, interleaved)
    assert_accurate(y, reference.rope, q, k, positions, cos, sin, interleaved)
