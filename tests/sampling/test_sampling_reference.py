"""The sampling specification against what others say: Random123's vectors, float64, Hugging Face, exact fractions."""

from fractions import Fraction

import pytest
import torch
import triton
import triton.language as tl

from octavo.kernels import reference
from octavo.kernels.sampling_math import scaled_gap
from octavo.kernels.testing.draws import SEEDS, any_logits, any_parameters
from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.triton.sampling.sampling_math import gumbel_noise, weight_units

# https://github.com/DEShawResearch/random123, tests/kat_vectors: philox4x32 10; counter, key, output
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
HALF_ULP = 2.0**-24


def words(text):
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_words(counter, key, output):
    assert reference.philox(words(counter), words(key)) == words(output)


@triton.jit
def _probe_kernel(noise_ptr, weights_ptr, scaled_ptr, seeds_ptr, positions_ptr, ROWS: tl.constexpr, IDS: tl.constexpr):
    rows, quads = tl.arange(0, ROWS)[:, None], tl.arange(0, IDS // 4)[None, :]
    at = rows * IDS + tl.arange(0, IDS)[None, :]
    noise = gumbel_noise(tl.load(seeds_ptr + rows), tl.load(positions_ptr + rows), quads + rows * 0)
    tl.store(noise_ptr + at, noise)
    tl.store(weights_ptr + at, weight_units(tl.load(scaled_ptr + at)))


def test_kernels_compute_noise_and_weights_to_the_reference_s_last_bit():
    """Of the six hard seeds at first, last and other positions; of exponents down to where nothing is left of them."""
    seeds = torch.tensor([*SEEDS, *range(-5, 5)], device=DEVICE)
    positions = torch.tensor([0, 1, 2**31 - 1, 77] * 4, dtype=torch.int32, device=DEVICE)
    scaled = -torch.rand(16, 4096, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 40
    scaled[:, :3] = torch.tensor([0.0, -torch.inf, -1e38], device=DEVICE)
    noise, weights = torch.empty_like(scaled), torch.empty_like(scaled, dtype=torch.int64)
    _probe_kernel[(1,)](noise, weights, scaled, seeds, positions, ROWS=16, IDS=4096, enable_fp_fusion=False)
    assert torch.equal(noise, reference.gumbel_noise(seeds, positions, 4096))
    assert torch.equal(weights, reference.weights_q44(scaled))


def test_log_is_accurate_to_two_half_ulps_over_all_exponents():
    x = torch.logspace(-37.9, 38, 2_000_000, dtype=torch.float64).float()
    near_one = 1 + torch.arange(-(2**20), 2**20) * HALF_ULP
    for values in (x, near_one[near_one != 1].float()):
        values = values[values != 1]
        exact = values.double().log()
        assert ((reference.natural_log(values).double() - exact) / exact).abs().max() < 2 * HALF_ULP


def test_noise_is_gumbel_s_quantile_of_its_word_at_both_ends():
    """The largest is that of word 0, 22.87, the smallest that of u = 1 - 2^-24; both are finite."""
    middle = torch.logspace(3, 9.6, 100_000, dtype=torch.float64).long()
    word = torch.cat([torch.arange(1000), middle, 2**32 - torch.arange(1, 300)])
    uniform = ((word.double() + 0.5) / 2**32).clamp(max=1 - 2.0**-24)
    exact = -torch.log(-torch.log1p(-uniform))
    noise = reference.gumbel(word)
    assert noise.isfinite().all()
    assert noise.max() == noise[0]
    assert round(noise.max().item(), 2) == 22.87
    tail = word < 2**31  # where the noise is above 0.36; the losing end resolves u to 2^-24
    assert ((noise.double() - exact) / exact)[tail].abs().max() < 8 * HALF_ULP


def test_weights_are_exp_to_two_half_ulps_and_a_unit():
    scaled = -torch.linspace(0, 70, 1_000_000, dtype=torch.float64).float()
    exact = scaled.double().exp() * 2.0**44
    error = (reference.weights_q44(scaled).double() - exact).abs()
    assert (error <= exact * 2 * HALF_ULP + 1).all()


def test_survivors_are_hugging_face_s():
    """In its order: temperature, top-k, top-p, min-p. Its own rule for ties is another; normal logits have none."""
    process = pytest.importorskip("transformers").generation.logits_process
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(200, 300, generator=generator)
    for temperature, top_k, top_p, min_p in [
        (1.0, 50, 1.0, 0.0), (0.7, 0, 0.9, 0.0), (1.3, 0, 1.0, 0.05), (1.0, 20, 0.8, 0.0), (2.0, 100, 0.95, 0.02),
    ]:  # fmt: skip
        scores = process.TemperatureLogitsWarper(temperature)(None, logits.double())
        scores = process.TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = process.TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        scores = process.MinPLogitsWarper(min_p)(None, scores) if min_p else scores
        rows = [torch.full((200,), value) for value in (temperature, top_k, top_p, min_p)]
        mask = reference.keep_mask(logits, rows[0].unsqueeze(1), *rows[1:])
        assert torch.equal(mask, scores > -torch.inf)


def test_survivors_of_tied_rows_are_those_of_exact_fractions():
    generator = torch.Generator().manual_seed(2)
    logits = any_logits(400, 17, generator).cpu()
    temperature, top_k, top_p, min_p, *_ = (column.cpu() for column in any_parameters(400, 17, generator))
    temperature = torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
    mask = reference.keep_mask(logits, temperature, top_k, top_p, min_p)
    scaled = scaled_gap(logits, temperature)
    weights = reference.weights_q44(scaled).tolist()
    for row in range(400):
        order = sorted(range(17), key=lambda i: (-logits[row, i].item(), i))[: int(top_k[row]) or 17]
        total, before, kept = sum(weights[row][i] for i in order), 0, set()
        for i in order:
            if not kept or top_p[row] >= 1 or before < Fraction(top_p[row].item()) * total:
                kept.add(i)
            before += weights[row][i]
        floor = reference.natural_log(min_p[row].clamp(1e-37, 1)) if min_p[row] > 0 else -torch.inf
        assert set(mask[row].nonzero().flatten().tolist()) == {i for i in kept if scaled[row, i] >= floor}
