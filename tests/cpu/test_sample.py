"""The cpu backend's sample chooses what the reference chooses, every time."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.cpu import sample

SEEDS = torch.tensor([0, -1, 2**63 - 1, -(2**63), 12345])


def assert_same(logits: torch.Tensor, **options: torch.Tensor) -> None:
    rows = len(logits)
    arguments = {
        "temperature": torch.ones(rows),
        "top_k": torch.zeros(rows, dtype=torch.int32),
        "top_p": torch.ones(rows),
        "min_p": torch.zeros(rows),
        "seeds": SEEDS[torch.arange(rows) % len(SEEDS)] ^ torch.arange(rows),
        "positions": torch.arange(rows, dtype=torch.int32),
        **options,
    }
    ids, logprobs = sample.sample(logits, **arguments)
    expected_ids, expected = reference.sample(logits, **arguments)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logprobs, expected, equal_nan=True)


@pytest.mark.parametrize("vocab_size", [1, 2, 5, 97, 1025, 8193])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_choice_is_the_references(vocab_size, ties):
    generator = torch.Generator().manual_seed(vocab_size)
    rows = 200 if vocab_size < 2000 else 60
    logits = torch.randn(rows, vocab_size, generator=generator) * torch.rand(rows, 1, generator=generator) * 8
    if ties:
        logits = logits.round()
    uniform = torch.rand(4, rows, generator=generator)
    assert_same(
        logits,
        temperature=torch.where(uniform[0] < 0.2, 0.0, uniform[0] * 2),
        top_k=torch.where(uniform[1] < 0.4, 0, uniform[1] ** 2 * vocab_size * 1.2 + 1).int(),
        top_p=torch.where(uniform[2] < 0.3, 1.0, uniform[2]),
        min_p=torch.where(uniform[3] < 0.5, 0.0, uniform[3] ** 4),
    )


def test_a_flat_row_needs_more_than_the_head():
    """Top-p of thousands of equal weights: the first selection does not hold enough."""
    logits = torch.zeros(3, 20_000)
    logits[1, ::2] = 1e-3
    assert_same(logits, top_p=torch.tensor([0.9, 0.99, 0.06]))


def test_rows_that_are_not_numbers():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    logits[0, 3], logits[2], logits[3, 7], logits[4, 9] = torch.nan, -torch.inf, torch.inf, -torch.inf
    assert_same(
        logits, top_k=torch.tensor([0, 5, 5, 0, 3], dtype=torch.int32), top_p=torch.tensor([1.0, 0.5, 0.5, 1, 1])
    )


@pytest.mark.parametrize("num", [1, 5, 40])
def test_the_most_likely_are_the_references(num):
    logits = (torch.randn(6, 40, generator=torch.Generator().manual_seed(num)) * 3).round()
    logits[0, 3], logits[2], logits[3, 7], logits[4, 9:] = torch.nan, -torch.inf, torch.inf, -torch.inf
    (ids, logprobs), (expected_ids, expected) = sample.top_logprobs(logits, num), reference.top_logprobs(logits, num)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logprobs, expected, equal_nan=True)
