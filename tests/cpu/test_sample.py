"""The cpu backend's sample chooses what the reference chooses, every time."""

import numpy as np
import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu import sample
from octavo.kernels.sampling_math import gumbel, weights_q44
from octavo.kernels.testing.draws import any_logits, any_parameters

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


def everything(num_rows, vocab_size):
    numbers = torch.Generator().manual_seed(vocab_size)
    logits = any_logits(num_rows, vocab_size, numbers, torch.device("cpu"))
    logits[3::17, -1], logits[5::23] = torch.nan, -torch.inf
    return logits, any_parameters(num_rows, vocab_size, numbers, torch.device("cpu"))


@pytest.mark.parametrize("vocab_size", [1, 3, 63, 64, 65, 129, 2050, 5001])
def test_every_kind_of_row_draws_the_references_token(vocab_size):
    """Tied, flat, infinite and broken rows, with every filter, cold and hot; the last block of ids whole or not."""
    logits, arguments = everything(600 if vocab_size < 1000 else 150, vocab_size)
    ids, logprobs = sample.sample(logits, *arguments)
    expected_ids, expected = reference.sample(logits, *arguments)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(logprobs, expected, equal_nan=True)


def test_heat_without_bound_and_nearly_everything_kept():
    logits = 3 * torch.randn(8, 6000, generator=torch.Generator().manual_seed(1))
    hot = torch.tensor([1000.0, 1e30, torch.inf, 3e38, 1e-38, 1e-45, torch.nan, -1.0])
    assert_same(logits, temperature=hot)
    assert_same(logits, temperature=hot, top_p=torch.full((8,), 0.999999))
    assert_same(logits, temperature=hot, top_k=torch.full((8,), 5999, dtype=torch.int32), min_p=torch.full((8,), 1e-30))


def test_the_last_ids_can_win():
    logits = torch.zeros(64, 131)
    logits[:, 128:] = 1e6
    ids, _ = sample.sample(logits, *everything(64, 131)[1])
    assert set(ids.tolist()) == {128, 129, 130}


def test_a_row_has_its_bits_whatever_the_threads_and_the_company():
    logits, arguments = everything(90, 1000)
    together = *sample.sample(logits, *arguments), *sample.top_logprobs(logits, 7)
    for rows in ([0], [89], list(range(89, -1, -1))):
        part = logits[rows]
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                alone = *sample.sample(part, *(x[rows] for x in arguments)), *sample.top_logprobs(part, 7)
            finally:
                torch.set_num_threads(1)
            assert all(
                torch.equal(a.nan_to_num(1), b[rows].nan_to_num(1)) for a, b in zip(alone, together, strict=True)
            )


def test_both_functions_give_an_id_the_same_log_probability():
    logits, arguments = everything(90, 1000)
    (ids, logprobs), (all_ids, all_logprobs) = sample.sample(logits, *arguments), sample.top_logprobs(logits, 1000)
    found = (all_ids == ids.unsqueeze(1)) & (ids >= 0).unsqueeze(1)
    assert torch.equal(all_logprobs[found], logprobs[ids >= 0])


def test_lm_head_sample_draws_from_all_ids():
    logits = 4 * torch.randn(7, 333, generator=torch.Generator().manual_seed(2))
    columns = [everything(7, 333)[1][i] for i in (0, 4, 5)]
    off, all_kept = torch.zeros(7), torch.ones(7)
    expected, _ = reference.sample(logits, columns[0], off.int(), all_kept, off, *columns[1:])
    assert torch.equal(sample.lm_head_sample(torch.eye(7), logits.T.contiguous(), *columns), expected)


@nk.cpu_kernel("ff ii q")
def _arithmetic(fields):
    scaled, noise = nk.float32_ptrs(fields, 0, 2)
    words, weights = nk.int32_ptrs(fields, 2, 2)
    (size,) = nk.int_args(fields, 4, 1)
    for i in range(size):
        noise[i] = sample._gumbel(np.float32(np.uint32(words[i])))
        weight = sample._weight_q44(scaled[i])
        weights[2 * i], weights[2 * i + 1] = weight, weight >> 32


def test_noise_and_weights_are_the_references_to_the_bit():
    """No product is fused with a sum, and no sum is taken in another order."""
    numbers = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31, (50_000,), generator=numbers).int()
    words[:5] = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)])
    scaled = -70 * torch.rand(50_000, generator=numbers) ** 3
    scaled[:4] = torch.tensor([0.0, -0.0, -torch.inf, -1e-45])
    noise, weights = torch.empty(50_000), torch.empty(50_000, 2, dtype=torch.int32)
    _arithmetic(torch.float32, 0, scaled, noise, words, weights, 50_000)
    assert torch.equal(noise, gumbel(words.long() & 0xFFFFFFFF))
    assert torch.equal(weights.view(torch.int64).squeeze(1), weights_q44(scaled))
