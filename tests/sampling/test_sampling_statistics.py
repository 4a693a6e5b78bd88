"""Do the tokens have the distribution that was asked for? And would the tests notice if they had not?

On a CPU a hundred thousand draws of one row go through the reference's own noise and arithmetic, of the survivors only;
the first of them are compared with what reference and kernel draw from the whole row. On a GPU the kernel draws all.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.testing.draws import parameters
from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.triton.sampling.sample import sample

from draws import fit, independence, uniformity, wide_programs

DRAWS = 100_000
TESTS = 40  # chi-squares and KS of this file, at most
THRESHOLD = 0.01 / TESTS  # a right sampler fails one test of this file once in a hundred choices of SEED
SEED = 20261121


@dataclass(frozen=True)
class Setting:
    vocab_size: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    allowed: int | None = None  # how many ids are not forbidden, spread over the vocabulary with its first and last

    def logits(self) -> Tensor:
        logits = 3 * torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(self.vocab_size))
        if self.allowed:
            ids = torch.linspace(0, self.vocab_size - 1, self.allowed).long()
            logits = torch.full_like(logits, -torch.inf).index_copy_(0, ids, logits[ids] / 3)
        return logits

    def columns(self, num_rows: int, positions: Tensor) -> tuple[Tensor, ...]:
        filters = (self.temperature, self.top_k, self.top_p, self.min_p)
        return parameters(num_rows, *filters, seeds=SEED, positions=positions)

    def probabilities(self) -> Tensor:
        """What the ids should have, from the definitions alone, in float64."""
        weights = torch.softmax(self.logits().double() / self.temperature, -1)
        order = weights.argsort(descending=True, stable=True)
        ranked = weights[order]
        if self.top_k:
            ranked[self.top_k :] = 0
        ranked /= ranked.sum()
        ranked[ranked.cumsum(0) - ranked >= self.top_p] = 0
        ranked[ranked < self.min_p * ranked[0]] = 0
        return torch.zeros_like(weights).scatter(0, order, ranked / ranked.sum())


SETTINGS = [
    Setting(8193, top_k=40),
    Setting(8193, temperature=0.5, top_p=0.95),
    Setting(8193, temperature=1.5, min_p=0.25),
    Setting(8193, temperature=0.8, top_k=60, top_p=0.9),
    Setting(10000, top_k=50, min_p=0.1),
    Setting(10000, temperature=2.0, top_k=30),
    Setting(10000, temperature=0.6, top_p=0.97, min_p=0.01),
    Setting(50257, top_k=50),
    Setting(50257, temperature=0.7, top_k=50, top_p=0.95, min_p=0.02),
    Setting(50257, temperature=1.2, allowed=48),
    Setting(50257, temperature=0.9, top_p=0.9, allowed=40),
    Setting(111),
]


def draw(logits: Tensor, survivors: Tensor, temperature: float, seeds: Tensor, positions: Tensor) -> Tensor:
    """One id of the row `[vocab_size]` per (seed, position), by the reference's noise of the survivors alone."""
    ids = survivors.nonzero().flatten()
    group = (ids // 4).expand(len(seeds), -1)
    zero = torch.zeros_like(group)
    counter = (group, positions.long().unsqueeze(1).expand_as(group), zero, zero)
    key = (seeds.unsqueeze(1) & 0xFFFFFFFF, (seeds.unsqueeze(1) >> 32) & 0xFFFFFFFF)
    words = torch.stack(reference.philox(counter, key)).gather(0, (ids % 4).expand(1, len(seeds), -1)).squeeze(0)
    scores = logits[ids].double() + torch.tensor(temperature).double() * reference.gumbel(words).double()
    return ids[scores.argmax(-1)]


def survivors_of(setting: Setting) -> Tensor:
    heat, top_k, top_p, min_p, *_ = (column.cpu() for column in setting.columns(1, torch.zeros(1)))
    logits = setting.logits()
    survivors = reference.keep_mask(logits.unsqueeze(0), heat.unsqueeze(1), top_k, top_p, min_p)[0]
    return survivors & (logits > -torch.inf)  # a forbidden id may survive the filters, but it cannot win


def drawn(
    setting: Setting, survivors: Tensor, logits: Tensor | None = None, temperature: float | None = None
) -> Tensor:
    """DRAWS ids of one request, position after position."""
    logits = setting.logits() if logits is None else logits
    temperature = setting.temperature if temperature is None else temperature
    seeds = torch.tensor(SEED)
    parts = torch.arange(DRAWS, dtype=torch.int32).split(10_000)
    return torch.cat([draw(logits, survivors, temperature, seeds.expand(len(part)), part) for part in parts])


def p_value(setting: Setting, token_ids: Tensor) -> float:
    return fit(torch.bincount(token_ids, minlength=setting.vocab_size), setting.probabilities())


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_fit_the_distribution_that_was_asked_for(monkeypatch, setting):
    survivors = survivors_of(setting)
    assert torch.equal(survivors, setting.probabilities() > 0)
    token_ids = drawn(setting, survivors)
    rows = setting.logits().expand(4, -1)
    columns = setting.columns(4, torch.arange(4))
    assert torch.equal(reference.sample(rows, *(column.cpu() for column in columns))[0], token_ids[:4].int())
    wide_programs(monkeypatch, setting.vocab_size, lanes=2**18)
    assert torch.equal(sample(rows.to(DEVICE), *columns)[0].cpu(), token_ids[:4].int())
    assert p_value(setting, token_ids) > THRESHOLD


@pytest.mark.gpu
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_million_draws_of_the_kernel_fit_it(setting):
    row, counts = setting.logits().to(DEVICE), torch.zeros(setting.vocab_size, dtype=torch.int64)
    for positions in torch.arange(1_000_000).split(10_000):
        token_ids, _ = sample(row.expand(len(positions), -1), *setting.columns(len(positions), positions))
        counts += torch.bincount(token_ids.cpu(), minlength=setting.vocab_size)
    assert fit(counts, setting.probabilities()) > THRESHOLD


def test_noise_is_gumbel_and_its_words_are_uniform():
    seeds = torch.arange(1000)
    noise = reference.gumbel_noise(seeds, torch.full((1000,), 7, dtype=torch.int32), 1000)
    assert uniformity(torch.exp(-torch.exp(-noise.double()))) > THRESHOLD
    group = torch.arange(250_000)
    words = reference.philox((group, group * 0, group * 0, group * 0), (torch.tensor(SEED), torch.tensor(0)))
    for word in words:
        assert uniformity(word / 2**32) > THRESHOLD


FLAT = Setting(12, temperature=3.0)  # every pair of ids is common


def tokens(seeds: Tensor, positions: Tensor) -> Tensor:
    return draw(FLAT.logits(), torch.ones(12, dtype=torch.bool), FLAT.temperature, seeds, positions)


def test_consecutive_positions_are_independent():
    for stride in (1, 2, 7):
        positions = torch.arange(DRAWS)
        seeds = torch.full((DRAWS,), SEED)
        assert independence(tokens(seeds, positions), tokens(seeds, positions + stride), 12) > THRESHOLD


def test_rows_of_a_batch_are_independent():
    """Neighbouring seeds, seeds that differ in the highest bit, and the first tokens of requests numbered from 0."""
    seeds, positions = torch.arange(DRAWS), torch.full((DRAWS,), 5)
    for other in (seeds + 1, seeds ^ (1 << 31), seeds ^ (1 << 62), -1 - seeds):
        assert independence(tokens(seeds, positions), tokens(other, positions), 12) > THRESHOLD


def test_neighbouring_ids_get_independent_noise():
    """The four words of one counter, and the first of the next: which of two is larger says nothing of the others."""
    noise = reference.gumbel_noise(torch.arange(DRAWS), torch.zeros(DRAWS, dtype=torch.int32), 8)
    thirds = (noise.double().neg().exp().neg().exp() * 3).long().clamp(max=2)
    for first, second in ((0, 1), (0, 2), (2, 3), (3, 4), (0, 4)):
        assert independence(thirds[:, first], thirds[:, second], 3) > THRESHOLD


# The tests are tested: each of these samplers is wrong, and each is caught.
VICTIM = Setting(10000, temperature=0.9, top_k=40, top_p=0.9)


def test_a_temperature_five_percent_off_is_caught():
    for factor in (0.95, 1.05):
        assert p_value(VICTIM, drawn(VICTIM, survivors_of(VICTIM), temperature=VICTIM.temperature * factor)) < THRESHOLD


def test_one_token_in_eight_drawn_a_fifth_too_often_is_caught():
    setting = Setting(50257, allowed=64)
    logits, ids = setting.logits(), setting.logits().isfinite().nonzero().flatten()[::8]
    logits[ids] += torch.tensor(1.2).log()
    assert p_value(setting, drawn(setting, survivors_of(setting), logits)) < THRESHOLD


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_a_top_p_that_is_off_by_one_token_is_caught(change):
    survivors, ranked = survivors_of(VICTIM), VICTIM.logits().argsort(descending=True, stable=True)
    kept = int(survivors.sum())
    survivors[ranked[kept if change == "one more" else kept - 1]] = change == "one more"
    assert p_value(VICTIM, drawn(VICTIM, survivors)) < THRESHOLD


def test_a_seed_that_is_ignored_is_caught():
    positions = torch.arange(DRAWS)
    first, second = (tokens(torch.zeros(DRAWS, dtype=torch.int64), positions) for _ in ("seed 1", "seed 2"))
    assert independence(first, second, 12) < THRESHOLD


def test_a_neighbour_s_seed_is_caught():
    """Its distribution is right and its rows are independent: only a row drawn alone shows it."""

    def company(seeds: Tensor) -> Tensor:
        return tokens(seeds.roll(1), torch.arange(len(seeds)))

    seeds = torch.arange(64)
    alone = torch.cat([tokens(seeds[i : i + 1], torch.tensor([i])) for i in range(64)])
    assert torch.equal(tokens(seeds, torch.arange(64)), alone)
    assert not torch.equal(company(seeds), alone)


def test_uniforms_one_percent_off_are_caught():
    uniform = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert uniformity(uniform) > THRESHOLD
    assert uniformity(uniform**1.01) < THRESHOLD


def test_words_used_twice_are_caught():
    noise = reference.gumbel_noise(torch.arange(DRAWS), torch.zeros(DRAWS, dtype=torch.int32), 1)[:, 0]
    thirds = (noise.double().neg().exp().neg().exp() * 3).long().clamp(max=2)
    assert independence(thirds, thirds, 3) < THRESHOLD


def test_a_forbidden_id_drawn_once_is_caught():
    token_ids = drawn(VICTIM, survivors_of(VICTIM))
    assert p_value(VICTIM, token_ids) > THRESHOLD
    token_ids[0] = VICTIM.logits().argmin()
    assert p_value(VICTIM, token_ids) == 0
