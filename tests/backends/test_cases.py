"""The Triton backend and the reference on the cases that every backend has to pass, and the cases themselves."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from octavo.kernels import backends, testing
from octavo.kernels.ops import OP_NAMES, REFERENCE

ALL = [case for op in OP_NAMES if op != "pack" for case in testing.cases(op)]


@pytest.mark.parametrize("case", [case for case in ALL if case.format is None], ids=str)
def test_triton(case, guarded_memory):
    case.check(backends.load("triton"))


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_reference_is_within_its_own_tolerance(op):
    """So no case asks for more than plain PyTorch gives, and none has a NaN where a value should be."""
    for case in testing.cases(op):
        case.check(REFERENCE)


def test_every_case_has_a_name_of_its_own():
    assert [name for name, count in Counter(map(str, ALL)).items() if count > 1] == []
    assert {case.op for case in ALL} == set(OP_NAMES) - {"pack"}


def test_an_unknown_op_is_named():
    with pytest.raises(ValueError, match=r"^op must be one of layer_norm, .*, not 'softmax'"):
        testing.cases("softmax")


def off(op):
    """The reference's op, its results off by a thousandth."""

    def call(*arguments):
        results = getattr(REFERENCE, op)(*arguments)
        return tuple(x * 1.001 for x in results) if isinstance(results, tuple) else results * 1.001

    return call


def stores_nothing(*_):
    return None


def changes_x(x, weight, eps):
    y = REFERENCE.rms_norm(x, weight, eps)
    x += 1
    return y


def leaves_a_hole(x, weight, eps):
    y = torch.empty_like(x)
    y[:, 1:] = REFERENCE.rms_norm(x, weight, eps)[:, 1:]
    return y


def takes_the_last_maximum(logits, *rest):
    flipped = REFERENCE.sample(logits.flip(1), *rest)[0]
    return logits.shape[1] - 1 - flipped, REFERENCE.sample(logits, *rest)[1]


def ignores_the_mask(*arguments):
    return REFERENCE.sample(*arguments[:7])


def knows_the_ids_only(logits, num):
    ids, logprobs = REFERENCE.top_logprobs(logits, num)
    return ids, logprobs * 1.001


WRONG = {
    "layer_norm": ("layer_norm", off("layer_norm"), r"3 x 1, float32: error \S+ over the budget \S+$"),
    "add_rms_norm": ("add_rms_norm", off("add_rms_norm"), r"error \S+ over the budget"),
    "silu_mul": ("silu_mul", off("silu_mul"), r"error \S+ over the budget"),
    "rope": ("rope", off("rope"), r"error \S+ over the budget"),
    "linear": ("linear", off("linear"), r"error \S+ over the budget"),
    "pack": ("pack", lambda weight, format=None: REFERENCE.pack(weight * 1.001, format), "linear, .*error"),
    "causal_attention": ("causal_attention", off("causal_attention"), r"error \S+ over the budget"),
    "paged_attention": ("paged_attention", off("paged_attention"), r"error \S+ over the budget"),
    "write_kv": ("write_kv", stores_nothing, "values are not the reference's"),
    "apply_penalties": ("apply_penalties", stores_nothing, "values are not the reference's"),
    "sample": ("sample", takes_the_last_maximum, "ids: "),
    "a mask": ("sample", ignores_the_mask, "masked"),
    "log-probabilities": (
        "top_logprobs",
        lambda *a: (REFERENCE.top_logprobs(*a)[0], off("top_logprobs")(*a)[1]),
        "log",
    ),
    "an argument": ("rms_norm", changes_x, "argument 0 was changed"),
    "a hole": ("rms_norm", leaves_a_hole, "3 of 3 values are not finite"),
    "an error": ("silu_mul", lambda x: x.no_such_thing, "raised AttributeError: "),
    "one result": ("add_rms_norm", lambda *a: REFERENCE.add_rms_norm(*a)[0], "1 results, expected 2"),
    "a dtype": ("silu_mul", lambda x: REFERENCE.silu_mul(x).double(), "dtype torch.float64, expected torch.float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_op_is_refused_in_one_line(name):
    op, function, message = WRONG[name]
    with pytest.raises(AssertionError, match=message) as refusal:
        testing.check(replace(REFERENCE, name="mine", **{op: function}))
    for line in str(refusal.value).splitlines():
        assert line.startswith("backend 'mine': ")
    assert f"{'linear' if op == 'pack' else op}, " in str(refusal.value)


def test_a_right_op_is_counted():
    mine = replace(REFERENCE, name="mine", silu_mul=lambda gate_up: REFERENCE.silu_mul(gate_up))
    assert testing.check(mine) == len(testing.cases("silu_mul"))
    assert testing.check(REFERENCE) == 0
