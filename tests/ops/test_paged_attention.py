"""paged_attention: within the one tolerance; its bits know nothing of neighbours, blocks or chunks."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.triton.paged_attention import paged_attention

from factories import cu_seqlens, decode_args, fused_qkv, integers, paged, prefill_args
from guarded import FLOATS
from numerics import assert_accurate

pytestmark = pytest.mark.usefixtures("guarded_memory")
BLOCK_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_prefill(block_size: int, dtype: torch.dtype) -> None:
    """Block and tile boundaries; whole prompts, late chunks and single tokens side by side."""
    args = prefill_args([1, 32, 33, 70, 65], [1, 32, 5, 1, 33], (3, 1, 40), dtype, block_size)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_decode(block_size: int, dtype: torch.dtype) -> None:
    """Boundaries of blocks, of key tiles (32 in the interpreter) and of pieces (256)."""
    args = decode_args([1, 31, 33, 255, 256, 257], (3, 1, 40), dtype, block_size)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


HEADS = [(4, 4, 16), (9, 3, 64), (8, 1, 8), (2, 2, 80), (20, 1, 24), (1, 1, 128), (2, 1, 256)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads_and_groups(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    args = decode_args([40, 7], heads, dtype, 4)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)
    args = prefill_args([21, 7], [17, 2], heads, dtype, 4)
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_decode_merges_many_pieces(dtype: torch.dtype) -> None:
    """More pieces than one step of the merge takes (16 of head_dim 256); the last is partial and scores the highest."""
    args = decode_args([256 * 17 + 3], (1, 1, 256), dtype, 256)
    k_cache, table = args[1:4:2]
    assert isinstance(k_cache, Tensor)
    assert isinstance(table, Tensor)
    k_cache[table[0, 17].long()] *= 16
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


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


def test_shared_blocks() -> None:
    """A prefix that two sequences share is read by both, where it lies."""
    args = list(decode_args([32, 40], (2, 2, 16), torch.float32, 8))
    table = args[3]
    assert isinstance(table, Tensor)
    table[1, :2] = table[0, :2]
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)


def test_decode_with_sequences_that_have_no_query() -> None:
    args = list(decode_args([20, 30, 40], (2, 1, 16), torch.float32, 8, padding=0))
    args[5] = integers([0, 1, 1, 2])
    assert_accurate(paged_attention(*args), reference.paged_attention, *args)
