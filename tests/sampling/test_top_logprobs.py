"""top_logprobs against its reference: the same ids in the same order, the same log-probabilities."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.draws import any_logits, parameters
from octavo.kernels.testing.inputs import DEVICE, FLOATS, strided
from octavo.kernels.testing.numerics import assert_within
from octavo.kernels.triton.sampling.sample import sample
from octavo.kernels.triton.sampling.top_logprobs import top_logprobs

from draws import set_programs, wide_programs

pytestmark = pytest.mark.usefixtures("guarded_memory")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_same(logits, num):
    ids, logprobs = top_logprobs(logits, num)
    expected, twin = reference.top_logprobs(logits, num)
    assert torch.equal(ids, expected)
    oracle = reference.log_softmax(logits.double()).gather(1, expected.clamp(min=0).long())
    impossible = twin == -torch.inf
    assert torch.equal(logprobs == -torch.inf, impossible)
    for row in range(len(logits)):  # each by itself, so that no enormous one lends its rounding to the others
        possible = ~impossible[row]
        assert_within(logprobs[row, possible], oracle[row, possible], twin[row, possible])


@pytest.mark.parametrize(("vocab_size", "num"), [(1, 1), (7, 7), (33, 5), (111, 20), (1000, 3), (5000, 1)])
def test_ids_and_order_are_the_reference_s(monkeypatch, vocab_size, num):
    wide_programs(monkeypatch, vocab_size)
    assert_same(any_logits(45, vocab_size, generator(vocab_size)), num)


@pytest.mark.parametrize("num", [1, 3, 10])
def test_so_they_are_where_most_groups_are_never_read(monkeypatch, num):
    set_programs(monkeypatch, rows=16, chunk=64)
    assert_same(any_logits(18, 300, generator(num)), num)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [50257, 128256])
def test_so_they_are_at_full_size(vocab_size):
    assert_same(any_logits(45, vocab_size, generator(0)), 20)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_of_any_dtype_with_strided_rows(dtype):
    assert_same(strided(any_logits(18, 111, generator(1)).clamp(-6e4, 6e4).to(dtype)), 9)


def test_a_row_alone_has_the_bits_it_has_in_company():
    logits = any_logits(9, 111, generator(3))
    ids, logprobs = top_logprobs(logits, 5)
    for row in (0, 4, 8):
        alone = top_logprobs(logits[row : row + 1], 5)
        assert torch.equal(alone[0][0], ids[row])
        assert torch.equal(alone[1][0], logprobs[row])


def test_broken_rows_get_minus_one_and_harm_no_neighbour():
    logits = any_logits(9, 70, generator(2))
    before = top_logprobs(logits, 4)
    logits[3, 69], logits[6] = torch.nan, -torch.inf
    ids, logprobs = top_logprobs(logits, 4)
    sound = [row for row in range(9) if row not in (3, 6)]
    assert torch.equal(ids[sound], before[0][sound])
    assert torch.equal(logprobs[sound], before[1][sound])
    assert ids[[3, 6]].eq(-1).all()
    assert logprobs[[3, 6]].isnan().all()


def test_the_first_is_what_a_greedy_draw_chooses_with_the_same_bits():
    logits = any_logits(18, 500, generator(3))
    ids, logprobs = top_logprobs(logits, 2)
    token_ids, chosen = sample(logits, *parameters(18, temperature=0.0))
    assert torch.equal(ids[:, 0], token_ids)
    assert torch.equal(logprobs[:, 0], chosen)


def test_no_rows_at_all():
    ids, logprobs = top_logprobs(torch.zeros(0, 40, device=DEVICE), 3)
    assert ids.shape == logprobs.shape == (0, 3)


@pytest.mark.parametrize("num", [-1, 0, 41])
def test_a_num_outside_the_vocabulary_is_refused(num):
    with pytest.raises(ValueError, match=r"^num must"):
        top_logprobs(torch.zeros(2, 40, device=DEVICE), num)


@pytest.mark.parametrize(
    "logits", [torch.zeros(4), torch.zeros(2, 40).double(), torch.zeros(40, 2).T], ids=["rank", "dtype", "stride"]
)
def test_bad_logits_are_refused(logits):
    with pytest.raises(ValueError, match=r"^logits must"):
        top_logprobs(logits.to(DEVICE), 2)
