"""Attention on a CPU: a query's row has the same bits however it is computed, in whatever company."""

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.cpu.attention.arithmetic import STORED
from octavo.kernels.cpu.attention.ops import causal_attention, paged_attention
from octavo.kernels.cpu.attention.piece import SPLIT
from octavo.kernels.testing.numerics import assert_accurate

LENGTH = SPLIT + 90  # two pieces, the second no whole number of vectors
PLAIN = (0, 0.0, False)
KINDS = {"window": (70, 0.0, False), "softcap": (0, 1.5, False), "sinks": (0, 0.0, True), "all": (301, 1.5, True)}
SHAPES = [(8, 8, 24), (6, 2, 64), (8, 1, 80), (2, 2, 128), (3, 1, 256)]  # query heads, kv heads, head_dim
CASES = [(shape, PLAIN) for shape in SHAPES] + [(SHAPES[i % 3], kind) for i, kind in enumerate(KINDS.values())]


class Prompt:
    """Queries, keys and values of one sequence, the way they attend, and their rows as one prefill gives them."""

    def __init__(self, shape: tuple[int, int, int], kind: tuple[int, float, bool], dtype: torch.dtype) -> None:
        (heads, kv_heads, head_dim), (window, softcap, has_sinks) = shape, kind
        random = torch.Generator().manual_seed(head_dim)
        sizes = heads, kv_heads, kv_heads
        self.q, self.k, self.v = (torch.randn(LENGTH, n, head_dim, generator=random).to(dtype) for n in sizes)
        sinks = torch.randn(heads, generator=random) if has_sinks else None
        self.kind = head_dim**-0.5, window, softcap, sinks
        self.bounds = torch.tensor([0, LENGTH], dtype=torch.int32)
        self.rows = causal_attention(self.q, self.k, self.v, self.bounds, LENGTH, *self.kind)

    def paged(self, spans: list[tuple[int, int]], block_size: int = 16) -> list[Tensor]:
        """The rows of queries `start..end`, a sequence for each span. Keys lie in blocks out of order, and full of
        NaN where no token of the sequence is."""
        blocks = [-(-end // block_size) for _, end in spans]
        order = torch.randperm(sum(blocks) + 3, generator=torch.Generator().manual_seed(7))
        table = torch.full((len(spans), max(blocks)), -1, dtype=torch.int32)
        caches = [
            torch.full((len(order), block_size, *x.shape[1:]), torch.nan, dtype=x.dtype) for x in (self.k, self.v)
        ]
        for row, ((_, end), numbers) in enumerate(zip(spans, order.split([*blocks, 3])[:-1], strict=True)):
            table[row, : len(numbers)] = numbers
            slots = (numbers[:, None] * block_size + torch.arange(block_size)).flatten()[:end]
            for cache, tokens in zip(caches, (self.k, self.v), strict=True):
                cache.flatten(0, 1)[slots] = tokens[:end]
        q, counts = torch.cat([self.q[a:b] for a, b in spans]), [b - a for a, b in spans]
        lengths = torch.tensor([end for _, end in spans], dtype=torch.int32)
        bounds = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return list(paged_attention(q, *caches, table, lengths, bounds, max(counts), *self.kind).split(counts))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize(("shape", "kind"), CASES, ids=str)
def test_a_prompt_whole_in_chunks_and_token_by_token(shape, kind, dtype):
    prompt = Prompt(shape, kind, dtype)
    arguments = prompt.q, prompt.k, prompt.v, prompt.bounds, LENGTH, *prompt.kind
    assert_accurate(prompt.rows, reference.causal_attention, *arguments)
    for size in (1, 7, 16, 100, LENGTH):
        starts = range(0, LENGTH, size) if size > 1 else [0, 1, 15, 16, 99, SPLIT - 1, SPLIT, SPLIT + 1, LENGTH - 1]
        spans = [(start, min(start + size, LENGTH)) for start in starts]
        for (start, end), rows in zip(spans, prompt.paged(spans), strict=True):
            assert torch.equal(rows, prompt.rows[start:end]), (start, end)


@pytest.mark.parametrize(("shape", "kind"), [(SHAPES[1], PLAIN), (SHAPES[0], KINDS["all"])], ids=str)
@pytest.mark.parametrize("block_size", [1, 16, 64])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_company_blocks_and_threads(shape, kind, dtype, block_size, num_threads):
    prompt, before = Prompt(shape, kind, dtype), torch.get_num_threads()
    spans = [
        (LENGTH - 1, LENGTH),
        (3, 120),
        (0, 1),
        (SPLIT, SPLIT + 1),
        (200, 205),
        (0, LENGTH),
        (SPLIT - 2, SPLIT + 2),
    ]
    torch.set_num_threads(num_threads)
    try:
        together = prompt.paged(spans, block_size)
    finally:
        torch.set_num_threads(before)
    for (start, end), rows in zip(spans, together, strict=True):
        assert torch.equal(rows, prompt.rows[start:end]), (start, end)
        assert torch.equal(prompt.paged([(start, end)], 32)[0], rows), (start, end)


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in STORED], ids=str)
def test_a_score_of_minus_infinity_weighs_nothing_and_nan_stays(dtype):
    """A whole piece of -inf beside one of numbers; infinite keys and values in the future harm nobody."""
    prompt = Prompt((2, 1, 64), PLAIN, dtype)
    q, k, v = prompt.q.abs(), prompt.k.clone(), prompt.v.clone()
    k[:SPLIT], k[-1], v[-1] = -torch.inf, torch.nan, torch.inf
    rows = causal_attention(q, k, v, prompt.bounds, LENGTH, *prompt.kind)
    assert rows[: SPLIT - 1].isnan().all()  # as PyTorch's softmax of nothing but -inf
    assert rows[-1].isnan().all()
    bounds = torch.tensor([0, LENGTH - 1], dtype=torch.int32)
    expected = reference.causal_attention(q[:-1], k[:-1], v[:-1], bounds, LENGTH, *prompt.kind)
    torch.testing.assert_close(rows[SPLIT:-1], expected[SPLIT:], rtol=0.02, atol=0.02)
