"""Both attentions on a GPU: real sizes, bfloat16 as the hardware has it, addresses beyond 2^31, CUDA graphs."""

import pytest
import torch
from torch import Tensor
from triton import knobs

from octavo.kernels import reference
from octavo.kernels.testing.inputs import (
    DEVICE,
    FLOATS,
    cu_seqlens,
    decode_args,
    fused_qkv,
    integers,
    paged,
    prefill_args,
)
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.triton.paged_attention import paged_attention

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("guarded_memory")]
REAL_HEADS = [(12, 12, 64), (9, 3, 64), (32, 8, 128), (8, 8, 80), (4, 2, 256)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", REAL_HEADS, ids=str)
def test_causal_real_sizes(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    lengths = [1, 127, 128, 129, 1000, 2048]
    q, k, v = fused_qkv(sum(lengths), heads, dtype, padding=300)
    args = (q, k, v, cu_seqlens(lengths), 2048, heads[2] ** -0.5)
    assert_accurate(causal_attention(*args), reference.causal_attention, *args)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", REAL_HEADS, ids=str)
def test_causal_alone_and_in_a_batch(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    lengths = [1000, 1, 129, 320, 64]
    q, k, v = fused_qkv(sum(lengths), heads, dtype)
    together = causal_attention(q, k, v, cu_seqlens(lengths), 1000, 0.1)
    for start, length in zip(cu_seqlens(lengths).tolist(), lengths, strict=False):
        for part in {length, length // 2 + 1}:
            rows = slice(start, start + part)
            alone = causal_attention(q[rows], k[rows], v[rows], cu_seqlens([part]), part, 0.1)
            assert torch.equal(alone, together[rows])


def test_row_5_causal_addresses_beyond_2_to_31_elements() -> None:
    """The last sequence of a projection of more than 2^31 elements."""
    num_tokens, heads = 2**31 // (3 * 12 * 64) + 2048, (12, 12, 64)
    fused = torch.zeros((num_tokens, 36, 64), dtype=torch.bfloat16, device=DEVICE)
    q, k, v = fused.split(12, dim=1)
    last = fused_qkv(1000, heads, torch.bfloat16)
    for whole, part in zip((q, k, v), last, strict=True):
        whole[-1000:] = part
    lengths = [num_tokens - 1000 - 1024 * (num_tokens // 1024 - 1), *[1024] * (num_tokens // 1024 - 1), 1000]
    o = causal_attention(q, k, v, cu_seqlens(lengths), 2048, 0.125)
    assert torch.equal(o[-1000:], causal_attention(*last, cu_seqlens([1000]), 1000, 0.125))
    assert int(o[:-1000].count_nonzero()) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", REAL_HEADS, ids=str)
def test_paged_real_sizes(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    args = decode_args([1, 1023, 1024, 1025, 100, 0, 4096] * 2, heads, dtype, 16)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)
    args = prefill_args([2048, 1000, 129, 64, 700], [2048, 513, 1, 64, 127], heads, dtype, 16)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", REAL_HEADS, ids=str)
def test_paged_prefill_has_the_bits_of_causal_attention(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    q, k, v = fused_qkv(1000, heads, dtype)
    whole = causal_attention(q, k, v, cu_seqlens([1000]), 1000, 0.1)
    for block_size in (1, 16, 256):
        for start, end in ((0, 1000), (0, 1), (1, 2), (2, 130), (62, 200), (513, 1000), (999, 1000)):
            caches_and_table = paged(k[:end], v[:end], [end], block_size, seed=end)
            indices = (integers([end]), cu_seqlens([end - start]), max(2, end - start), 0.1)
            assert torch.equal(paged_attention(q[start:end], *caches_and_table, *indices), whole[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", REAL_HEADS[:3], ids=str)
def test_a_decode_step_alone_and_among_256(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    contexts = [(37 * seq) % 300 for seq in range(256)]
    args = decode_args(contexts, heads, dtype, 16, padding=0)
    together = paged_attention(*args)
    q, k_cache, v_cache, table = (x for x in args[:4] if isinstance(x, Tensor))
    for seq in (0, 1, 7, 24, 255):
        alone = paged_attention(q[seq : seq + 1], k_cache, v_cache, table[seq : seq + 1],
                                integers(contexts[seq : seq + 1]), cu_seqlens([1]), 1, args[-1])  # fmt: skip
        assert torch.equal(alone[0], together[seq])


@pytest.mark.parametrize("longest", [1, 2])
def test_row_30_a_context_beyond_its_table_is_named_under_triton_debug(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths on a GPU are read only where TRITON_DEBUG=1 allows the synchronisation."""
    q, k_cache, v_cache, table, _, bounds, *_ = decode_args([32], (2, 1, 16), torch.float16, 8)
    assert isinstance(table, Tensor)
    args = (q, k_cache, v_cache, table[:, :4], integers([1000]), bounds, longest, 0.25)
    assert bool(paged_attention(*args).isfinite().all())
    monkeypatch.setattr(knobs.runtime, "debug", True)
    with pytest.raises(ValueError, match=r"context_lens\[0\] is 1000"):
        paged_attention(*args)


def test_a_captured_decode_step_follows_its_buffers() -> None:
    """Replayed with other lengths and blocks, a CUDA graph gives the bits of an eager call."""
    contexts = [[300, 5, 0, 1000], [301, 6, 17, 1], [0, 0, 900, 513]]
    steps = [decode_args(lengths, (12, 12, 64), torch.bfloat16, 16, padding=2) for lengths in contexts]
    static = [x.clone() if isinstance(x, Tensor) else x for x in widened(steps[0])]
    paged_attention(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = paged_attention(*static)
    for step in steps:
        for buffer, value in zip(static, widened(step), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)
        graph.replay()
        assert torch.equal(o, paged_attention(*widened(step)))


def widened(args: tuple[object, ...], num_blocks: int = 160, width: int = 70) -> list[object]:
    """The same call with a larger pool and a wider table, as an engine's buffers are."""
    q, k_cache, v_cache, table, *rest = args
    pool = torch.full((2, num_blocks, *k_cache.shape[1:]), torch.nan, dtype=k_cache.dtype, device=DEVICE)
    pool[0, : len(k_cache)], pool[1, : len(v_cache)] = k_cache, v_cache
    wide = torch.full((len(table), width), -1, dtype=torch.int32, device=DEVICE)
    wide[:, : table.shape[1]] = table
    return [q, pool[0], pool[1], wide, *rest]
