"""paged_attention at its edges: extreme scores, dead memory, far addresses, full tables, bad input."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.testing.inputs import (
    DEVICE,
    FLOATS,
    cu_seqlens,
    decode_args,
    far_rows,
    fused_qkv,
    integers,
    paged,
    prefill_args,
)
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton import paged_attention as module
from octavo.kernels.triton.paged_attention import paged_attention

pytestmark = pytest.mark.usefixtures("guarded_memory")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("key", [-64.0, 64.0])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_row_1_extreme_scores(phase: str, key: float, dtype: torch.dtype) -> None:
    """Raw scores of -524288 gave zeros; decode, prefill and the merge of two pieces."""
    keys = torch.full((300, 1, 128), key, dtype=dtype, device=DEVICE)
    caches_and_table = paged(keys, torch.ones_like(keys), [300], 16)
    num_queries = 1 if phase == "decode" else 20
    q = torch.full((num_queries, 1, 128), 64.0, dtype=dtype, device=DEVICE)
    o = paged_attention(q, *caches_and_table, integers([300]), cu_seqlens([num_queries]), num_queries, 128**-0.5)
    assert torch.equal(o, torch.ones_like(q))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_2_queries_that_see_no_key(dtype: torch.dtype) -> None:
    """Context 0, or more queries than keys, is zeros and never NaN; the others keep their bits."""
    args = prefill_args([0, 3, 40, 0], [2, 20, 9, 0], (2, 1, 16), dtype, 4)
    o = paged_attention(*args)
    assert_accurate(o, reference.paged_attention, *args)
    assert torch.equal(o[: 2 + 17], torch.zeros_like(o[: 2 + 17]))
    assert bool((o[2 + 17 : 31] != 0).any(-1).all())
    args = decode_args([0, 5, 0], (2, 1, 16), dtype, 4)
    o = paged_attention(*args)
    assert_accurate(o, reference.paged_attention, *args)
    assert bool((o[1] != 0).all())
    assert torch.equal(o[[0, 2, 3, 4]], torch.zeros_like(o[:4]))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -torch.inf])
def test_row_3_dead_slots_reach_nobody(fill: float, phase: str) -> None:
    """What no token owns (ends of blocks, spare blocks, memory around the pool) changes no bit."""
    contexts, heads = [5, 33, 258], (2, 1, 16)
    queries = [1, 1, 1] if phase == "decode" else [3, 20, 7]
    _, k, v = fused_qkv(sum(contexts), heads, torch.float16)
    q, _, _ = fused_qkv(sum(queries), heads, torch.float16, padding=4)
    indices = (integers(contexts), cu_seqlens(queries), max(queries), 0.25)
    clean = paged_attention(q, *paged(k, v, contexts, 16, fill=0.0), *indices)
    assert bool(clean.isfinite().all())
    assert torch.equal(paged_attention(q, *paged(k, v, contexts, 16, fill=fill), *indices), clean)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_row_8_nan_stays_in_its_sequence(phase: str) -> None:
    """Keys of one sequence are NaN: its neighbours keep their bits, also where a later piece is clean."""
    contexts, queries = [300, 300, 20], [1, 1, 1] if phase == "decode" else [9, 5, 20]
    _, k, v = fused_qkv(620, (2, 1, 16), torch.float32)
    q, _, _ = fused_qkv(sum(queries), (2, 1, 16), torch.float32)
    clean, dirty = v.clone(), v.clone()
    dirty[310] = torch.nan
    indices = (integers(contexts), cu_seqlens(queries), max(queries), 0.25)
    before, after = (paged_attention(q, *paged(k, x, contexts, 16), *indices).split(queries) for x in (clean, dirty))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert bool(after[1].isnan().all())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_row_5_addresses_beyond_2_to_31_elements(phase: str) -> None:
    """A block id times a stride wraps in int32, silently."""
    num_queries = 1 if phase == "decode" else 5
    q, k, v = fused_qkv(5, (1, 1, 16), torch.float16)
    indices = (integers([5]), cu_seqlens([num_queries]), num_queries, 0.25)
    near = paged_attention(q[:num_queries], *paged(k, v, [5], 1), *indices)
    k_cache, v_cache = far_rows(2, 5, 16, torch.float16)
    k_cache[:], v_cache[:] = k, v
    table = integers([0, 1, 2, 3, 4]).view(1, 5)
    far = paged_attention(q[:num_queries], k_cache.unsqueeze(1), v_cache.unsqueeze(1), table, *indices)
    assert torch.equal(far, near)


def test_row_26_nothing_to_do() -> None:
    """No tokens, no sequences, no blocks."""
    q, k, v = fused_qkv(0, (2, 1, 16), torch.float32, padding=3)
    k_cache, v_cache, table = paged(k, v, [], 4)
    for longest in (0, 1, 2):
        o = paged_attention(q, k_cache, v_cache, table, integers([]), integers([0]), longest, 1.0)
        assert torch.equal(o, torch.zeros_like(q))
        narrow = (k_cache, v_cache, table.new_zeros(2, 0), integers([0, 0]), integers([0, 0, 0]))
        assert torch.equal(paged_attention(q, *narrow, longest, 1.0), torch.zeros_like(q))
        assert paged_attention(q[:0], *narrow, longest, 1.0).shape == (0, 2, 16)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_row_30_a_context_that_fills_its_table(phase: str) -> None:
    """Exactly at capacity is right, one token more is an error where lengths can be read."""
    num_queries = 1 if phase == "decode" else 3
    q, k, v = fused_qkv(32, (2, 1, 16), torch.float32)
    k_cache, v_cache, table = paged(k, v, [32], 8)
    args = (q[:num_queries], k_cache, v_cache, table[:, :4])
    indices = (cu_seqlens([num_queries]), num_queries, 0.25)
    assert_accurate(
        paged_attention(*args, integers([32]), *indices), reference.paged_attention, *args, integers([32]), *indices
    )
    if DEVICE.type == "cpu":
        with pytest.raises(ValueError, match=r"context_lens\[0\] is 33, but .* holds 4 blocks of 8"):
            paged_attention(*args, integers([33]), *indices)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_row_30_nothing_beyond_the_table_is_read(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lengths cannot be read, as on a GPU: the context is cut off at the table's width."""
    monkeypatch.setattr(module, "values_are_readable", lambda index: False)
    num_queries = 1 if phase == "decode" else 3
    q, k, v = fused_qkv(300, (2, 1, 16), torch.float32)
    k_cache, v_cache, table = paged(k, v, [300], 4)  # the table is a view: beyond it lie ids of a block of NaN
    indices = (cu_seqlens([num_queries]), num_queries, 0.25)
    args = (q[:num_queries], k_cache, v_cache, table[:, :75])
    o = paged_attention(*args, integers([317]), *indices)
    assert torch.equal(o, paged_attention(*args, integers([300]), *indices))
    assert_accurate(o, reference.paged_attention, *args, integers([317]), *indices)


def good() -> dict[str, Tensor | float]:
    cache = torch.zeros(6, 4, 2, 16, device=DEVICE)
    return {
        "q": torch.zeros(3, 4, 16, device=DEVICE),
        "k_cache": cache,
        "v_cache": cache.clone(),
        "block_table": integers([0, 1, 2, 3, 4, -1]).view(2, 3),
        "context_lens": integers([12, 8]),
        "cu_seqlens_q": integers([0, 2, 3]),
        "max_seqlen_q": 2,
        "scale": 0.25,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 64)}, "q must be"),
        ({"q": torch.zeros(3, 4, 16).long()}, "q must be float32"),
        ({"q": torch.zeros(3, 4, 18)}, "head_dim of q must be a multiple of 4"),
        ({"q": torch.zeros(3, 3, 16)}, "k_cache must have head_dim 16 and a number of heads that divides 3"),
        ({"q": torch.zeros(3, 16, 4).transpose(1, 2)}, "q must have a contiguous last dimension"),
        ({"k_cache": torch.zeros(24, 2, 16)}, "k_cache must be"),
        ({"k_cache": torch.zeros(6, 4, 2, 16).half()}, "k_cache must be torch.float32 on"),
        ({"v_cache": torch.zeros(6, 4, 1, 16)}, "v_cache must be shaped as k_cache"),
        ({"v_cache": torch.zeros(6, 2, 4, 16).transpose(1, 2)}, "v_cache must have the strides of k_cache"),
        ({"v_cache": torch.zeros(6, 4, 2, 16, device="meta")}, "v_cache must be torch.float32 on"),
        ({"block_table": torch.zeros(3, 3, dtype=torch.int32)}, "block_table must be int32"),
        ({"block_table": torch.zeros(2, 3)}, "block_table must be int32"),
        ({"block_table": torch.zeros(3, 2).int().T}, "block_table must be contiguous in its last"),
        ({"context_lens": torch.tensor([4, 9])}, "context_lens must be int32"),
        ({"cu_seqlens_q": torch.tensor([0, 3], dtype=torch.int32)}, "cu_seqlens_q must be int32"),
        ({"scale": -1.0}, "scale must be positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(change: dict[str, Tensor | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paged_attention(**{**good(), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [0, 3, 12, 512])
def test_bad_block_sizes_are_named(block_size: int) -> None:
    cache = torch.zeros(6, block_size, 2, 16, device=DEVICE)
    with pytest.raises(ValueError, match=f"block_size of k_cache must be a power of two up to 256, not {block_size}"):
        paged_attention(**{**good(), "k_cache": cache, "v_cache": cache})  # type: ignore[arg-type]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="reading index tensors would synchronise a GPU")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_lens": [12, 13]}, r"context_lens\[1\] is 13, but its row of block_table holds 3 blocks of 4"),
        ({"context_lens": [-1, 8]}, r"context_lens\[0\] is -1"),
        ({"context_lens": [12, 9]}, r"block_table\[1\] must name blocks of a cache of 6, not \[3, 4, -1\]"),
        ({"block_table": [0, 6, 2, 3, 4, -1]}, r"block_table\[0\] must name blocks of a cache of 6, not \[0, 6, 2\]"),
        ({"cu_seqlens_q": [0, 2, 4]}, "cu_seqlens_q must rise from 0 to at most 3"),
        ({"cu_seqlens_q": [0, 0, 3]}, "max_seqlen_q 2 is less than the longest sequence of cu_seqlens_q, 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_indices_are_named_where_they_can_be_read(change: dict[str, list[int]], message: str) -> None:
    (name, values), arguments = next(iter(change.items())), good()
    arguments[name] = integers(values).view_as(arguments[name])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments)  # type: ignore[arg-type]
