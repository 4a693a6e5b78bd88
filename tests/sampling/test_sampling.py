"""sample against its reference: the same token in every row, whatever the row, its company and the tiles."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.draws import SEEDS, any_logits, any_parameters, parameters
from octavo.kernels.testing.inputs import DEVICE, FLOATS, strided
from octavo.kernels.testing.numerics import assert_within
from octavo.kernels.triton.sampling.sample import sample

from draws import set_programs, wide_programs

pytestmark = pytest.mark.usefixtures("guarded_memory")

SWEEP = {1: 256, 2: 256, 7: 5120, 33: 7168, 111: 6144, 257: 1024, 1000: 256, 8193: 32}  # vocab_size: rows
NARROW = {257: (128, 128), 1000: (32, 256), 4097: (8, 1024)}  # vocab_size: (rows, CHUNK): most groups are never read


def generator(seed):
    return torch.Generator().manual_seed(seed)


def zeros(*shape):
    return torch.zeros(shape, device=DEVICE)


def assert_same(logits, arguments):
    """The reference's ids, to the last one; its log-probabilities, as near as float32 comes to float64."""
    token_ids, logprobs = sample(logits, *arguments)
    expected, twin = reference.sample(logits, *arguments)
    assert torch.equal(token_ids, expected)
    assert torch.equal(logprobs.isnan(), twin.isnan())
    chosen = expected.clamp(min=0).long().unsqueeze(1)
    oracle = reference.log_softmax(logits.double()).gather(1, chosen).squeeze(1)
    for rows in (twin > -1000, twin <= -1000):  # so that no enormous one lends its rounding to the others
        assert_within(logprobs[rows], oracle[rows], twin[rows])


@pytest.mark.parametrize("vocab_size", SWEEP)
def test_every_row_draws_the_reference_s_token(monkeypatch, vocab_size):
    """No row is excused: what decides is the same to the bit, so no two scores are ever a rounding apart."""
    assert sum(SWEEP.values()) >= 20_000
    wide_programs(monkeypatch, vocab_size)
    numbers, num_rows = generator(vocab_size), SWEEP[vocab_size]
    assert_same(any_logits(num_rows, vocab_size, numbers), any_parameters(num_rows, vocab_size, numbers))


@pytest.mark.parametrize("vocab_size", NARROW)
def test_so_it_does_where_the_maxima_of_groups_are_searched_first(monkeypatch, vocab_size):
    num_rows, chunk = NARROW[vocab_size]
    if DEVICE.type == "cpu":
        set_programs(monkeypatch, rows=num_rows, chunk=chunk)
    numbers = generator(vocab_size)
    assert_same(any_logits(num_rows, vocab_size, numbers), any_parameters(num_rows, vocab_size, numbers))


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [50257, 49152, 128256, 262144])
def test_so_it_does_at_full_size(vocab_size):
    numbers = generator(vocab_size)
    for _ in range(8):
        assert_same(any_logits(63, vocab_size, numbers), any_parameters(63, vocab_size, numbers))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_of_any_dtype_with_strided_rows(monkeypatch, dtype):
    wide_programs(monkeypatch, 111)
    logits = strided(any_logits(108, 111, generator(1)).clamp(-6e4, 6e4).to(dtype))
    assert_same(logits, any_parameters(108, 111, generator(2)))


@pytest.mark.parametrize(
    "sizes",
    [
        {"rows": 1, "tile": 32, "group": 32, "chunk": 64},
        {"rows": 2, "tile": 128, "group": 64, "chunk": 64},
        {"rows": 4, "tile": 64, "group": 32, "chunk": 128},
        {"rows": 16, "tile": 256, "group": 128, "chunk": 256},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_the_size_of_the_tiles(monkeypatch, sizes):
    logits, arguments = any_logits(9, 140, generator(3)), any_parameters(9, 140, generator(4))
    expected, _ = sample(logits, *arguments)
    set_programs(monkeypatch, **sizes)
    assert torch.equal(sample(logits, *arguments)[0], expected)


def test_a_row_draws_alone_what_it_draws_in_any_company():
    """Alone, in a batch of 8, 9 and 64, in any order."""
    logits, arguments = any_logits(64, 97, generator(5)), any_parameters(64, 97, generator(6))
    together = sample(logits, *arguments)
    batches = [[i] for i in (0, 1, 33, 63)]
    batches += [torch.randperm(64, generator=generator(size))[:size].tolist() for size in (8, 9, 64)]
    for rows in batches:
        part = sample(logits[rows], *(column[rows] for column in arguments))
        for got, expected in zip(part, together, strict=True):
            assert torch.equal(got.nan_to_num(1.0), expected[rows].nan_to_num(1.0)), f"rows {rows}"


def test_a_broken_row_gets_minus_one_and_harms_no_neighbour():
    """NaN of either sign, and a row without a finite logit, among sound rows."""
    logits, arguments = any_logits(24, 70, generator(7)), any_parameters(24, 70, generator(8))
    before = sample(logits, *arguments)
    broken = {2: torch.nan, 5: -torch.nan, 11: -torch.inf, 23: torch.nan}
    for row, value in broken.items():
        logits[row] = value if value == -torch.inf else logits[row]
        logits[row, 69] = value
    logits[5, 3] = torch.inf
    after = sample(logits, *arguments)
    sound = [row for row in range(24) if row not in broken]
    assert all(torch.equal(a[sound], b[sound]) for a, b in zip(before, after, strict=True))
    assert after[0][list(broken)].tolist() == [-1] * 4
    assert bool(after[1][list(broken)].isnan().all())


def test_plus_infinity_wins():
    logits = any_logits(12, 80, generator(9))
    logits[:, 50] = logits[:, 77] = torch.inf
    token_ids, logprobs = sample(logits, *any_parameters(12, 80, generator(10)))
    ties = logits.isinf() & (logits > 0)
    assert torch.equal(token_ids, ties.int().argmax(-1).int())
    torch.testing.assert_close(logprobs, -ties.sum(-1).log())


def test_top_k_of_one_and_temperature_zero_take_the_first_maximum():
    logits = (2 * torch.randn(64, 300, generator=generator(11))).round().to(DEVICE)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1).int()
    for choice in ({"top_k": 1, "temperature": 5.0}, {"temperature": 0.0}, {"top_p": 1e-9}, {"min_p": 1.0}):
        token_ids, _ = sample(logits, *parameters(64, **choice, seeds=range(64)))
        if "min_p" in choice:  # keeps every maximum
            assert torch.equal(logits.gather(1, token_ids.long().unsqueeze(1)).squeeze(1), logits.amax(-1))
        else:
            assert torch.equal(token_ids, first)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(5, 1.0, 5), (0, 0.0625, 8), (40, 0.5, 20), (0, 0.999, 128)])
def test_of_tied_ids_exactly_as_many_as_asked_for_survive_the_lowest(monkeypatch, top_k, top_p, kept):
    """Exactly k of equal ids, the lowest."""
    wide_programs(monkeypatch, 128)
    arguments = parameters(2048, top_k=top_k, top_p=top_p, seeds=17, positions=range(2048))
    assert set(sample(zeros(2048, 128), *arguments)[0].tolist()) == set(range(kept))


def test_a_tie_at_the_boundary_goes_to_the_lower_id(monkeypatch):
    """One of three equal ids is left, the lowest."""
    wide_programs(monkeypatch, 64)
    logits = zeros(1024, 64) - 50
    logits[:, [40, 3, 9, 60]] = torch.tensor([2.0, 1.0, 1.0, 1.0], device=DEVICE)
    for filters in ({"top_k": 2}, {"top_p": 0.6}):
        token_ids, _ = sample(logits, *parameters(1024, seeds=3, positions=range(1024), **filters))
        assert set(token_ids.tolist()) == {40, 3}


@pytest.mark.parametrize("vocab_size", [1, 2, 111, 8193, 10000, 50257])
def test_the_tail_of_a_tile_never_wins(vocab_size):
    """What lies past the vocabulary has no logit, and the lowest real one is far below 0."""
    wide = torch.full((3, vocab_size + 100), 1e38, device=DEVICE)
    logits = wide[:, :vocab_size]
    logits.copy_(torch.tensor([-1e30, -100.0, 1.0], device=DEVICE).unsqueeze(1).expand(3, vocab_size))
    arguments = parameters(3, temperature=[1.0, 100.0, 1e-6], top_k=[0, 0, 3], seeds=range(3))
    token_ids, _ = sample(logits, *arguments)
    assert bool(((token_ids >= 0) & (token_ids < vocab_size)).all())
    assert torch.equal(token_ids, reference.sample(logits, *arguments)[0])


@pytest.mark.parametrize("place", [0, 31, 32, 63, 64, 95, 96, 110])
def test_the_only_finite_logit_is_found_wherever_it_stands(place):
    """Tiles of nothing but -inf before and after it."""
    logits = zeros(6, 111) - torch.inf
    logits[:, place] = torch.tensor([-1e30, 0.0, 5.0, 1e30, -3.0, 2.0], device=DEVICE)
    arguments = parameters(6, [0, 1, 1, 1, 1, 1], [0, 0, 4, 0, 0, 111], [1, 1, 1, 0.5, 1, 0.9], [0, 0, 0, 0, 0.1, 1])
    token_ids, logprobs = sample(logits, *arguments)
    assert token_ids.tolist() == [place] * 6
    assert logprobs.tolist() == [0.0] * 6


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_k": 111}, {"top_k": 2**30}, {"top_p": 1e-9}, {}], ids=str)
def test_a_one_hot_row_draws_its_id(filters):
    """All the mass on one id, under any filter."""
    logits = torch.full((111, 111), -1e4, device=DEVICE).fill_diagonal_(1e4)
    token_ids, _ = sample(logits, *parameters(111, seeds=-1, positions=range(111), **filters))
    assert token_ids.tolist() == list(range(111))


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 0.999999])
def test_one_id_may_hold_any_share_of_the_mass(mass):
    """From a tenth to nearly all of it."""
    logits = torch.full((64, 1000), (1 - mass) / 999, device=DEVICE).log()
    logits[:, 500] = torch.tensor(mass).log()
    arguments = parameters(64, top_p=mass + (1 - mass) / 2, seeds=5, positions=range(64))
    token_ids, _ = sample(logits, *arguments)
    assert torch.equal(token_ids, reference.sample(logits, *arguments)[0])


def test_forbidden_ids_are_never_drawn_in_ten_thousand_draws(monkeypatch):
    """Nor any id beyond the vocabulary; every draw is a new one of the same row."""
    wide_programs(monkeypatch, 50)
    logits = torch.randn(50, generator=generator(12)).to(DEVICE)
    allowed = [0, 7, 13, 31, 32, 49]
    banned = torch.ones(50, dtype=torch.bool).index_fill_(0, torch.tensor(allowed), False)
    rows = logits.masked_fill(banned.to(DEVICE), -torch.inf).expand(10_000, 50)
    token_ids, _ = sample(rows, *parameters(10_000, temperature=50.0, seeds=2, positions=range(10_000)))
    assert set(token_ids.tolist()) == set(allowed)


def test_greedy_and_sampled_rows_share_a_launch():
    """Hot, cold and greedy rows with forbidden ids, in float16 too; none divides by its zero."""
    logits = torch.randn(1, 40, generator=generator(13)).masked_fill(torch.arange(40) % 3 == 0, -torch.inf)
    heats = [0, 1e-6, 1e-3, 1, 100, 0, 1e-38, 3e38]
    for dtype in FLOATS:
        rows = logits.to(DEVICE, dtype).expand(8, 40).contiguous()
        arguments = parameters(8, heats, [0, 0, 5, 0, 0, 7, 0, 0], seeds=range(8))
        token_ids, _ = sample(rows, *arguments)
        greedy = rows[0].float().argmax().item()
        assert [token_ids[i].item() for i in (0, 1, 2, 5, 6)] == [greedy] * 5
        assert torch.equal(token_ids, reference.sample(rows, *arguments)[0])


def test_every_seed_and_every_position_is_another_draw(monkeypatch):
    """Seeds of 64 bits, negative ones too."""
    wide_programs(monkeypatch, 256)
    flat = zeros(1, 256)
    drawn = [
        sample(flat.expand(64, 256), *parameters(64, seeds=seed, positions=range(64)))[0].tolist() for seed in SEEDS
    ]
    again = sample(flat.expand(64, 256), *parameters(64, seeds=SEEDS[1], positions=range(64)))[0].tolist()
    assert again == drawn[1]
    assert len({tuple(tokens) for tokens in drawn}) == len(SEEDS)
    assert all(len(set(tokens)) > 40 for tokens in drawn)  # 64 of 256 with replacement: 57 different ones on average


@pytest.mark.gpu
def test_a_replayed_graph_draws_what_its_arguments_say():
    """No seed or position is frozen when a graph is captured."""
    logits, arguments = any_logits(8, 50257, generator(14)), any_parameters(8, 50257, generator(15))
    sample(logits, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token_ids, _ = sample(logits, *arguments)
    for position in range(5):
        arguments[-1].fill_(position)
        graph.replay()
        assert torch.equal(token_ids, reference.sample(logits, *arguments)[0])


def test_no_rows_at_all():
    token_ids, logprobs = sample(zeros(0, 40), *parameters(0))
    assert token_ids.shape == logprobs.shape == (0,)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits", {"logits": torch.zeros(3, 4, 5)}),
        ("logits", {"logits": torch.zeros(3, 0)}),
        ("logits", {"logits": torch.zeros(3, 2**18 + 1)}),
        ("logits", {"logits": torch.zeros(3, 40, dtype=torch.float64)}),
        ("logits", {"logits": torch.zeros(40, 3).T}),
        ("temperature", {"temperature": torch.ones(4)}),
        ("temperature", {"temperature": torch.ones(3, dtype=torch.float64)}),
        ("top_k", {"top_k": torch.ones(3, dtype=torch.int64)}),
        ("top_p", {"top_p": torch.ones(3, 1)}),
        ("min_p", {"min_p": torch.ones(6)[::2]}),
        ("seeds", {"seeds": torch.ones(3, dtype=torch.int32)}),
        ("positions", {"positions": torch.ones(3, dtype=torch.int32, device="meta")}),
    ],
)
def test_bad_arguments_are_refused(name, change):
    names = ("logits", "temperature", "top_k", "top_p", "min_p", "seeds", "positions")
    arguments = dict(zip(names, (zeros(3, 40), *parameters(3)), strict=True))
    moved = {key: value if value.is_meta else value.to(DEVICE) for key, value in change.items()}
    with pytest.raises(ValueError, match=f"^{name} must"):
        sample(**(arguments | moved))
