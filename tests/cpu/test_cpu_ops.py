"""The cpu backend's ops against the reference, under the one tolerance."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.cpu import attention, kv_cache, linear, norm, paged_attention, rope

from numerics import assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def paged(lengths: list[int], queries: list[int], heads: int, kv_heads: int, head_dim: int, block_size: int, dtype):
    """Arguments of paged_attention with shuffled blocks, and NaN in every slot that no live token owns."""
    counts = [-(-length // block_size) for length in lengths]
    blocks = torch.randperm(sum(counts) + 3)
    table = torch.full((len(lengths), max(*counts, 1)), -1, dtype=torch.int32)
    caches = torch.full((2, len(blocks), block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    first = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = blocks[first : first + count]
        for position in range(length):
            block = table[row, position // block_size]
            caches[:, block, position % block_size] = torch.randn(2, kv_heads, head_dim).to(dtype)
        first += count
    q = torch.randn(sum(queries), heads, head_dim).to(dtype)
    ends = torch.tensor([0, *queries]).cumsum(0).int()
    return q, *caches, table, torch.tensor(lengths, dtype=torch.int32), ends, max(queries), head_dim**-0.5


CASES = {
    "decode": ([1, 16, 17, 33], [1, 1, 1, 1]),
    "decode alone": ([37], [1]),
    "decode of one length": ([21, 21, 21], [1, 1, 1]),
    "decode of many lengths": ([3, 130, 2, 9, 100, 8], [1, 1, 1, 1, 1, 1]),
    "prefill": ([5, 17, 32], [5, 17, 32]),
    "chunks": ([20, 33, 40], [3, 1, 24]),
    "padding": ([0, 9, 0], [1, 1, 1]),
    "nothing but padding": ([0, 0], [1, 1]),
    "no query": ([7, 8], [0, 2]),
    "decode without a query": ([7, 8], [0, 1]),
    "more queries than keys": ([2], [4]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(9, 3, 64, 16), (4, 4, 24, 1), (8, 1, 80, 4)]
)
def test_paged_attention(name, heads, kv_heads, head_dim, block_size, dtype):
    arguments = paged(*CASES[name], heads, kv_heads, head_dim, block_size, dtype)
    assert_accurate(paged_attention.paged_attention(*arguments), reference.paged_attention, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[1], [7, 1, 0, 12], [9, 9]])
def test_causal_attention(lengths, dtype):
    fused = torch.randn(sum(lengths), 5, 24).to(dtype)  # 3 query heads, 1 key, 1 value
    q, k, v = fused.split((3, 1, 1), dim=1)
    arguments = q, k, v, torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths), 0.2
    assert_accurate(attention.causal_attention(*arguments), reference.causal_attention, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (77, 257)])
def test_linear_on_packed_weights(rows, inputs, outputs, activation, dtype):
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    got = linear.linear(x, linear.pack(weight), bias, activation)
    assert_accurate(got, reference.linear, x, weight, bias, activation)
    assert_accurate(linear.linear(x, weight, None, activation), reference.linear, x, weight, None, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads", [(4, 2, 0), (2, 4, 1), (4, 1, 2)], ids=["neighbours", "fewer", "apart"])
@pytest.mark.parametrize("fused", [False, True])
def test_rope(fused, heads, interleaved, dtype):
    num_heads, num_kv_heads, between = heads
    projection = torch.randn(6, 7, 24).to(dtype)
    other = projection if fused else torch.randn_like(projection)
    q, k = projection[:, :num_heads], other[:, num_heads + between :][:, :num_kv_heads]
    angles = torch.outer(torch.arange(50.0), torch.rand(12))
    arguments = q, k, torch.tensor([0, 3, 3, 49, 1, 7], dtype=torch.int32), angles.cos(), angles.sin(), interleaved
    assert_accurate(rope.rope(*arguments), reference.rope, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("rows", [0, 1, 3, 40])
@pytest.mark.parametrize("dim", [3, 576])
def test_rms_norm(dim, rows, scale, dtype):
    x, residual = (torch.randn(2, rows, dim) * scale + scale).to(dtype)  # a mean that must not be taken off
    weight = torch.randn(dim).to(dtype)
    assert_accurate(norm.rms_norm(x, weight, 1e-5), reference.rms_norm, x, weight, 1e-5)
    y, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert_accurate(y, reference.rms_norm, total, weight, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("dim", [3, 768])
def test_layer_norm(dim, rows, mean, dtype):
    x, residual = (torch.randn(2, rows, dim) + mean).to(dtype)
    weight, bias = torch.randn(2, dim).to(dtype)
    assert_accurate(norm.layer_norm(x, weight, bias, 1e-5), reference.layer_norm, x, weight, bias, 1e-5)
    y, total = norm.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(total, x + residual)
    assert_accurate(y, reference.layer_norm, total, weight, bias, 1e-5)


@pytest.mark.parametrize("slots", [[5, 0, 11], [-1, 3, -1], [-1, -1, -1], []], ids=str)
def test_write_kv_is_bit_exact(slots):
    k, v = torch.randn(2, len(slots), 3, 5)
    ours, theirs = torch.full((2, 2, 3, 4, 3, 5), torch.nan)
    slot_mapping = torch.tensor(slots, dtype=torch.int32)
    kv_cache.write_kv(k, v, *ours, slot_mapping)
    reference.write_kv(k, v, *theirs, slot_mapping)
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
