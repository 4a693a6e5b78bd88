"""apply_penalties against the reference and against the definitions of its parameters."""

import pytest
import torch

from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.testing.sampling_cases import penalties
from octavo.kernels.triton.sampling.penalties import apply_penalties

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


def arguments(num_rows, vocab_size):
    return penalties(num_rows, vocab_size, torch.float32, 5, DEVICE)


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
