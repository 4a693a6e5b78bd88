"""lm_head_sample: the choice of `linear` and then `sample`, to the bit, without the logits in between."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.draws import parameters
from octavo.kernels.testing.inputs import DEVICE, FLOATS, noise, strided
from octavo.kernels.triton import launch
from octavo.kernels.triton.linear import linear
from octavo.kernels.triton.sampling.lm_head_sample import lm_head_sample
from octavo.kernels.triton.sampling.sample import sample

pytestmark = pytest.mark.usefixtures("guarded_memory")
NAMES = ("hidden", "weight", "temperature", "seeds", "positions")
# num_seqs, vocab_size, dim: one row, tails of every kind, more tokens than the widest decode tile holds, a narrow head
SHAPES = [(1, 33, 16), (3, 130, 100), (9, 1000, 48), (70, 257, 64), (5, 1, 32)]


def arguments(num_seqs, vocab_size, dim, dtype=torch.float32):
    """Strided hidden states and weights; greedy, cold, usual and hot rows in turn."""
    heats = [(0.0, 1.0, 1e-4, 50.0)[row % 4] for row in range(num_seqs)]
    columns = parameters(num_seqs, heats, seeds=range(-3, num_seqs - 3), positions=range(num_seqs))
    hidden, weight = (strided(noise(rows, dim, dtype=dtype, seed=rows)) for rows in (num_seqs, vocab_size))
    return hidden, weight, columns[0], columns[4], columns[5]


def in_two_steps(hidden, weight, temperature, seeds, positions):
    off = torch.zeros_like(temperature)
    return sample(linear(hidden, weight), temperature, off.int(), off + 1, off, seeds, positions)[0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_choice_is_that_of_linear_and_sample(shape, dtype):
    values = arguments(*shape, dtype)
    assert torch.equal(lm_head_sample(*values), in_two_steps(*values))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 50257, 768), (64, 50257, 768), (256, 49152, 576)], ids=str)
def test_so_it_is_at_full_size(shape, dtype):
    values = arguments(*shape, dtype)
    assert torch.equal(lm_head_sample(*values), in_two_steps(*values))


def test_with_sums_that_are_exact_it_is_the_reference_s():
    """Small integers: no order of addition rounds, and ties abound, within a tile and between tiles."""
    numbers = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randint(-2, 3, (rows, 24), generator=numbers).float().to(DEVICE) for rows in (40, 700))
    values = (hidden, weight, *arguments(40, 1, 8)[2:])
    assert torch.equal(lm_head_sample(*values), reference.lm_head_sample(*values))
    logits = hidden @ weight.T
    greedy = values[2] == 0
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1).int()
    assert torch.equal(lm_head_sample(*values)[greedy], first[greedy])


def test_a_row_draws_alone_what_it_draws_in_any_company():
    hidden, weight, *columns = arguments(70, 200, 32)
    together = lm_head_sample(hidden, weight, *columns)
    for rows in ([0], [41], [69], list(range(8)), list(range(60, 69)), list(range(69, -1, -1))):
        alone = lm_head_sample(hidden[rows], weight, *(column[rows] for column in columns))
        assert torch.equal(alone, together[rows]), f"rows {rows}"


def test_tokens_do_not_depend_on_the_vocabulary_s_tiles(monkeypatch):
    values, lookup = arguments(6, 300, 32), launch.lm_head
    expected = lm_head_sample(*values)
    for tokens, features in ((16, 16), (16, 64), (32, 256)):

        def changed(*facts, tiles=(tokens, features)):
            return {**lookup(*facts), "BLOCK_M": tiles[0], "BLOCK_N": tiles[1]}

        with monkeypatch.context() as patch:
            patch.setattr(launch, "lm_head", changed)
            assert torch.equal(lm_head_sample(*values), expected)


def test_a_broken_row_gets_minus_one_and_harms_no_neighbour():
    """A hidden state with a NaN, or whose logits become one."""
    hidden, weight, *columns = arguments(6, 150, 32)
    before = lm_head_sample(hidden, weight, *columns)
    hidden[2, 5] = torch.nan
    hidden[4, :] = torch.inf  # inf - inf somewhere
    after = lm_head_sample(hidden, weight, *columns)
    assert after[[2, 4]].tolist() == [-1, -1]
    assert torch.equal(after[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


def test_minus_infinity_never_wins_and_plus_infinity_always_does():
    hidden, weight, *columns = arguments(4, 150, 32)
    hidden.abs_()
    weight[:100] = -torch.inf
    assert bool((lm_head_sample(hidden, weight, *columns) >= 100).all())
    weight[:] = -torch.inf
    assert lm_head_sample(hidden, weight, *columns).tolist() == [-1] * 4
    weight[149] = weight[130] = torch.inf
    assert lm_head_sample(hidden, weight, *columns).tolist() == [130] * 4


def test_no_rows_at_all():
    assert lm_head_sample(*(value[:0] if i != 1 else value for i, value in enumerate(arguments(2, 9, 16)))).shape == (
        0,
    )


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("hidden", lambda x: x[0]),
        ("hidden", lambda x: x.double()),
        ("hidden", lambda x: x.T.contiguous().T),
        ("weight", lambda x: x[:, 1:]),
        ("weight", lambda x: x[:0]),
        ("weight", lambda x: x.half()),
        ("weight", lambda x: x.T.contiguous().T),
        ("weight", lambda x: x.to("meta")),
        ("temperature", lambda x: x[1:]),
        ("seeds", lambda x: x.int()),
        ("positions", lambda x: x.long()),
        ("positions", lambda x: x.to("meta")),
    ],
)
def test_bad_arguments_are_refused(name, spoil):
    values = dict(zip(NAMES, arguments(3, 40, 16), strict=True))
    with pytest.raises(ValueError, match=f"^{name} must"):
        lm_head_sample(**(values | {name: spoil(values[name])}))
