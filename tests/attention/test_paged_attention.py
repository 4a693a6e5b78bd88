"""paged_attention: within the one tolerance; its bits know nothing of neighbours, blocks or chunks."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.inputs import FLOATS, cu_seqlens, decode_args, fused_qkv, integers, paged
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.triton.paged_attention import paged_attention

pytestmark = pytest.mark.usefixtures("guarded_memory")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_a_prompt_has_the_bits_of_causal_attention(block_size: int, dtype: torch.dtype) -> None:
    """Whole, or in chunks of any length: a single token of a prompt comes with max_seqlen_q of at least 2."""
    q, k, v = fused_qkv(70, (2, 1, 40), dtype)
    whole = causal_attention(q, k, v, cu_seqlens([70]), 70, 0.2)
    for start, end in ((0, 70), (0, 1), (1, 2), (2, 33), (30, 50), (50, 69), (69, 70), (31, 70)):
        caches_and_table = paged(k[:end], v[:end], [end], block_size, seed=end)
        indices = (integers([end]), cu_seqlens([end - start]), max(2, end - start), 0.2)
        assert torch.equal(paged_attention(q[start:end], *caches_and_table, *indices), whole[start:end])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_22_a_chunk_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """Prefill beside others, in any order, in other blocks, with padding: the same bits."""
    contexts, queries, heads = [40, 3, 65, 17], [33, 3, 1, 16], (2, 1, 16)
    _, k, v = fused_qkv(sum(contexts), heads, dtype)
    q, _, _ = fused_qkv(sum(queries), heads, dtype, padding=9)
    together = paged_attention(q, *paged(k, v, contexts, 8), integers(contexts), cu_seqlens(queries), 33, 0.25)
    rows, keys, values = q[: sum(queries)].split(queries), k.split(contexts), v.split(contexts)
    for seq, expected in enumerate(together[: sum(queries)].split(queries)):
        caches_and_table = paged(keys[seq], values[seq], [contexts[seq]], 16, seed=7)
        indices = (integers([contexts[seq]]), cu_seqlens([queries[seq]]), 64, 0.25)
        assert torch.equal(paged_attention(rows[seq], *caches_and_table, *indices), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_22_a_decode_step_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """Any batch, any order, any block size and placement, any width of the table, with padding."""
    contexts, heads = [300, 1, 257, 0, 40, 512], (3, 1, 16)
    _, k, v = fused_qkv(sum(contexts), heads, dtype)
    q, _, _ = fused_qkv(len(contexts), heads, dtype, padding=3)
    indices = (integers(contexts), cu_seqlens([1] * 6), 1, 0.25)
    together = paged_attention(q, *paged(k, v, contexts, 16), *indices)
    keys, values = k.split(contexts), v.split(contexts)
    for seq, block_size in enumerate((4, 256, 1, 16, 128, 32)):
        caches_and_table = paged(keys[seq], values[seq], [contexts[seq]], block_size, seed=3)
        alone = paged_attention(q[seq : seq + 1], *caches_and_table, integers(contexts[seq : seq + 1]),
                                cu_seqlens([1]), 1, 0.25)  # fmt: skip
        assert torch.equal(alone[0], together[seq])
    turned = torch.cat(keys[::-1]), torch.cat(values[::-1])
    indices = (integers(contexts[::-1]), cu_seqlens([1] * 6), 1, 0.25)
    backwards = paged_attention(q[:6].flip(0), *paged(*turned, contexts[::-1], 2), *indices)
    assert torch.equal(backwards.flip(0), together[:6])


@pytest.mark.parametrize("num_queries", [1, 5])
def test_the_strides_of_the_caches_change_no_bit(num_queries: int) -> None:
    q, k, v = fused_qkv(40, (2, 1, 16), torch.float16)
    indices = (integers([40]), cu_seqlens([num_queries]), num_queries, 0.25)
    apart, interleaved = (paged(k, v, [40], 8, interleaved=there) for there in (False, True))
    assert not interleaved[0].is_contiguous()
    expected = paged_attention(q[:num_queries], *apart, *indices)
    assert torch.equal(paged_attention(q[:num_queries], *interleaved, *indices), expected)


def test_decode_with_sequences_that_have_no_query() -> None:
    args = list(decode_args([20, 30, 40], (2, 1, 16), torch.float32, 8, padding=0))
    args[5] = integers([0, 1, 1, 2])
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)
