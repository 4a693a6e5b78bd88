"""apply_penalties against the reference and against the definitions of its parameters."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.triton.sampling.penalties import apply_penalties

from guarded import DEVICE, FLOATS, noise, strided
from numerics import assert_within, widen

pytestmark = pytest.mark.usefixtures("guarded_memory")
NAMES = (
    "logits",
    "counts",
    "in_prompt",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "bias_ids",
    "bias_values",
)


def column(*values):
    return torch.tensor(values, dtype=torch.float32, device=DEVICE)


def arguments(num_rows, vocab_size, dtype=torch.float32, max_bias=5):
    """Strided logits; a third of the ids said, a third in the prompt; each penalty off in some rows, all off in one."""
    numbers = torch.Generator().manual_seed(vocab_size)
    counts = torch.randint(-2, 4, (num_rows, vocab_size), generator=numbers).clamp(min=0).int()
    in_prompt = torch.rand(num_rows, vocab_size, generator=numbers) < 0.3
    penalties = torch.rand(3, num_rows, generator=numbers) + torch.tensor([[0.6], [-0.5], [-0.5]])
    off = torch.rand(3, num_rows, generator=numbers) < 0.3
    off[:, 0] = True
    penalties = torch.where(off, torch.tensor([[1.0], [0.0], [0.0]]), penalties)
    ids = torch.rand(num_rows, max(vocab_size, max_bias), generator=numbers).argsort(-1)[:, :max_bias]
    ids[ids >= vocab_size] = -1
    ids[:, 1::3] = -1
    values = torch.randn(num_rows, max_bias, generator=numbers) * 10
    return (
        strided(4 * noise(num_rows, vocab_size, dtype=dtype)),
        *(tensor.to(DEVICE) for tensor in (counts, in_prompt, *penalties, ids.int(), values)),
    )


@pytest.mark.parametrize("vocab_size", [1, 33, 1000, 2049])
def test_in_float32_the_bits_are_the_reference_s(vocab_size):
    logits, *rest = arguments(6, vocab_size)
    expected = logits.clone()
    reference.apply_penalties(expected, *rest)
    apply_penalties(logits, *rest)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_in_16_bits_it_errs_no_more_than_the_reference(dtype):
    logits, *rest = arguments(6, 300, dtype)
    oracle, twin = logits.double(), logits.clone()
    reference.apply_penalties(oracle, *map(widen, rest))
    reference.apply_penalties(twin, *rest)
    apply_penalties(logits, *rest)
    assert_within(logits, oracle, twin)


def test_each_parameter_means_what_it_says():
    logits = column(2.0, -2.0, 2.0, -2.0, 2.0, 1.0).unsqueeze(0)
    counts = torch.tensor([[1, 3, 0, 0, 0, 0]], dtype=torch.int32, device=DEVICE)
    in_prompt = torch.tensor([[False, False, True, True, False, True]], device=DEVICE)
    bias_ids = torch.tensor([[5, -1]], dtype=torch.int32, device=DEVICE)
    apply_penalties(
        logits, counts, in_prompt, column(2.0), column(0.5), column(0.25), bias_ids, column(100.0, 7.0).unsqueeze(0)
    )
    assert logits.tolist() == [[2 / 2 - 0.5 - 0.25, -2 * 2 - 0.5 - 3 * 0.25, 1.0, -4.0, 2.0, 0.5 + 100]]


def test_rows_without_penalties_and_biases_keep_their_bits():
    logits, counts, in_prompt, *_ = arguments(3, 50)
    logits[0, :3] = torch.tensor([torch.inf, -torch.inf, -0.0], device=DEVICE)
    before = logits.clone()
    off = torch.zeros(3, device=DEVICE)
    nothing = torch.full((3, 2), -1, dtype=torch.int32, device=DEVICE)
    apply_penalties(logits, counts, in_prompt, off + 1, off, off, nothing, torch.ones(3, 2, device=DEVICE))
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))


def test_forbidden_ids_stay_forbidden_and_a_bias_can_forbid():
    logits, counts, in_prompt, repetition, presence, frequency, bias_ids, values = arguments(4, 40)
    logits[:, ::7] = -torch.inf
    values.fill_(-torch.inf)
    apply_penalties(logits, counts, in_prompt, repetition, presence, frequency, bias_ids, values)
    expected = torch.zeros(4, 40, dtype=torch.bool, device=DEVICE)
    expected[:, ::7] = True
    for row in range(4):
        expected[row, bias_ids[row][bias_ids[row] >= 0].long()] = True
    assert torch.equal(logits == -torch.inf, expected)
    assert not bool(logits.isnan().any())


def test_a_bias_beyond_the_vocabulary_changes_nothing():
    logits = torch.zeros(2, 50, device=DEVICE)
    ids = torch.tensor([[50, 2**31 - 1], [-1, 57]], dtype=torch.int32, device=DEVICE)
    off, none = torch.zeros(2, device=DEVICE), torch.zeros(2, 50, device=DEVICE)
    apply_penalties(logits, none.int(), none.bool(), off + 1, off, off, ids, torch.ones(2, 2, device=DEVICE))
    assert torch.equal(logits, none)


@pytest.mark.parametrize(("num_rows", "max_bias"), [(0, 3), (2, 0), (2, 300)])
def test_any_number_of_rows_and_biases(num_rows, max_bias):
    logits, *rest = (tensor[:num_rows] for tensor in arguments(2, 400, max_bias=max_bias))
    expected = logits.clone()
    reference.apply_penalties(expected, *rest)
    apply_penalties(logits, *rest)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("logits", lambda x: x.double()),
        ("counts", lambda x: x[:, 1:]),
        ("counts", lambda x: x.long()),
        ("counts", lambda x: x.T.contiguous().T),
        ("in_prompt", lambda x: x.int()),
        ("repetition_penalty", lambda x: x[1:]),
        ("presence_penalty", lambda x: x.double()),
        ("frequency_penalty", lambda x: x.to("meta")),
        ("bias_ids", lambda x: x.long()),
        ("bias_ids", lambda x: x[:, 0]),
        ("bias_values", lambda x: x[:, 1:]),
        ("bias_values", lambda x: x.T.contiguous().T),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(name, spoil):
    values = dict(zip(NAMES, arguments(3, 40), strict=True))
    before = values["logits"].clone()
    with pytest.raises(ValueError, match=f"^{name} must"):
        apply_penalties(**(values | {name: spoil(values[name])}))
    assert torch.equal(values["logits"], before)
