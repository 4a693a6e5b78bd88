"""causal_attention: within the one tolerance, and the same bits whatever else is in the batch."""

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels.testing.inputs import DEVICE, FLOATS, cu_seqlens, far_rows, fused_qkv, integers
from octavo.kernels.triton.attention import causal_attention

pytestmark = pytest.mark.usefixtures("guarded_memory")


def test_a_first_token_sees_itself_alone() -> None:
    q, k, v = fused_qkv(20, (2, 2, 16), torch.float32)
    o = causal_attention(q, k, v, cu_seqlens([10, 10]), 10, 0.25)
    assert torch.equal(o[0], v[0])
    assert torch.equal(o[10], v[10])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 128**-0.5])
@pytest.mark.parametrize("key", [-64.0, 64.0])
def test_row_1_extreme_scores(key: float, scale: float, dtype: torch.dtype) -> None:
    """A finite stand-in for -inf silently gives zeros where the true scores (-524288) are lower."""
    q = torch.full((40, 1, 128), 64.0, dtype=dtype, device=DEVICE)
    o = causal_attention(q, torch.full_like(q, key), torch.ones_like(q), cu_seqlens([40]), 40, scale)
    assert torch.equal(o, torch.ones_like(q))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_3_padding_rows_reach_nobody(dtype: torch.dtype) -> None:
    """NaN in rows beyond the last sequence, q, k and v alike, changes no bit; those rows are zeros."""
    q, k, v = fused_qkv(37, (2, 1, 16), dtype, padding=50)
    o = causal_attention(q, k, v, cu_seqlens([33, 4]), 33, 0.25)
    clean = causal_attention(q[:37], k[:37], v[:37], cu_seqlens([33, 4]), 33, 0.25)
    assert torch.equal(o[:37], clean)
    assert torch.equal(o[37:], torch.zeros_like(o[37:]))


def test_row_5_addresses_beyond_2_to_31_elements() -> None:
    """A token times a stride wraps in int32, silently."""
    q, k, v = fused_qkv(5, (1, 1, 16), torch.float16)
    far = far_rows(3, 5, 16, torch.float16)
    for row, near in zip(far, (q, k, v), strict=True):
        row[:] = near
    args = (cu_seqlens([4, 1]), 4, 0.25)
    assert torch.equal(causal_attention(*far, *args), causal_attention(q, k, v, *args))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_8_nan_stays_in_its_sequence(dtype: torch.dtype) -> None:
    q, k, v = fused_qkv(60, (2, 2, 16), dtype)
    clean = causal_attention(q, k, v, cu_seqlens([20, 20, 20]), 20, 0.25)
    v[39] = torch.nan
    o = causal_attention(q, k, v, cu_seqlens([20, 20, 20]), 20, 0.25)
    assert torch.equal(o[:20], clean[:20])
    assert torch.equal(o[40:], clean[40:])
    assert bool(o[39].isnan().all())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_22_a_sequence_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """The same bits for each sequence of a ragged batch as on its own, in any order."""
    lengths, heads = [33, 1, 47, 16], (2, 1, 40)
    q, k, v = fused_qkv(sum(lengths), heads, dtype)
    together = causal_attention(q, k, v, cu_seqlens(lengths), 47, 0.2).split(lengths)
    pieces = [part.split(lengths) for part in (q, k, v)]
    for seq, length in enumerate(lengths):
        alone = causal_attention(*(part[seq] for part in pieces), cu_seqlens([length]), 64, 0.2)
        assert torch.equal(alone, together[seq])
    turned = [torch.cat(part[::-1]) for part in pieces]
    backwards = causal_attention(*turned, cu_seqlens(lengths[::-1]), 50, 0.2).split(lengths[::-1])
    assert all(torch.equal(a, b) for a, b in zip(together, backwards[::-1], strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_the_rows_after_it(dtype: torch.dtype) -> None:
    """A row's tile may be unmasked or diagonal, full or the last: the bits are the same."""
    q, k, v = fused_qkv(70, (1, 1, 24), dtype)
    whole = causal_attention(q, k, v, cu_seqlens([70]), 70, 0.2)
    for length in (1, 15, 16, 17, 31, 32, 33, 48, 64, 69):
        part = causal_attention(q[:length], k[:length], v[:length], cu_seqlens([length]), length, 0.2)
        assert torch.equal(part, whole[:length])


def test_row_26_nothing_to_do() -> None:
    """No tokens, no sequences, sequences of no tokens."""
    q, k, v = fused_qkv(0, (2, 1, 16), torch.float32, padding=5)
    for lengths in ([], [0], [0, 0, 0]):
        assert torch.equal(causal_attention(q, k, v, cu_seqlens(lengths), 0, 1.0), torch.zeros_like(q))
        assert causal_attention(q[:0], k[:0], v[:0], cu_seqlens(lengths), 0, 1.0).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(8, 64)}, "q must be"),
        ({"q": torch.zeros(8, 4, 16).double()}, "q must be float32"),
        ({"q": torch.zeros(8, 4, 14)}, "head_dim of q must be a multiple of 4 up to 256, not 14"),
        ({"q": torch.zeros(8, 4, 264)}, "head_dim of q must be a multiple of 4 up to 256, not 264"),
        ({"q": torch.zeros(8, 5, 16)}, "k must have head_dim 16 and a number of heads that divides 5"),
        ({"q": torch.zeros(8, 4, 24)}, "k must have head_dim 24"),
        ({"q": torch.zeros(8, 16, 4).transpose(1, 2)}, "q must have a contiguous last dimension"),
        ({"k": torch.zeros(7, 2, 16)}, "k must be"),
        ({"k": torch.zeros(8, 2, 16).half()}, "k must be torch.float32 on"),
        ({"v": torch.zeros(8, 1, 16)}, "v must be shaped as k"),
        ({"v": torch.zeros(8, 2, 16, device="meta")}, "v must be torch.float32 on"),
        ({"cu_seqlens": torch.tensor([0, 8])}, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([[0, 8]]).int()}, "cu_seqlens must be int32"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": math.nan}, "scale must be positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(change: dict[str, Tensor | float], message: str) -> None:
    good = {"q": torch.zeros(8, 4, 16), "k": torch.zeros(8, 2, 16), "v": torch.zeros(8, 2, 16)}
    good |= {"cu_seqlens": torch.tensor([0, 8]).int()}
    moved = {name: value.to(DEVICE) if isinstance(value, Tensor) and not value.is_meta else value
             for name, value in {**good, "max_seqlen": 8, "scale": 0.25, **change}.items()}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        causal_attention(**moved)  # type: ignore[arg-type]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="reading index tensors would synchronise a GPU")
@pytest.mark.parametrize(
    ("bounds", "max_seqlen", "message"),
    [
        ([0, 9], 9, "cu_seqlens must rise from 0 to at most 8"),
        ([0, 5, 3], 5, "cu_seqlens must rise"),
        ([1, 8], 8, "cu_seqlens must rise"),
        ([0, 8], 7, "max_seqlen 7 is less than the longest sequence of cu_seqlens, 8"),
    ],
)
def test_bad_bounds_are_named_where_they_can_be_read(bounds: list[int], max_seqlen: int, message: str) -> None:
    q, k, v = fused_qkv(8, (2, 1, 16), torch.float32)
    with pytest.raises(ValueError, match=message):
        causal_attention(q, k, v, integers(bounds), max_seqlen, 0.25)
