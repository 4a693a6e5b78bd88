"""Every field of SamplingParams is checked, and the message names it."""

import math

import pytest

from octavo.gpt.sampling_params import SamplingParams

BAD = [
    *[(name, value) for name in ("temperature", "top_p", "min_p", "repetition_penalty") for value in (-0.1, math.nan)],
    *[(name, math.inf) for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")],
    *[(name, "1") for name in ("temperature", "top_k", "n", "seed", "max_tokens", "logprobs", "top_p")],
    *[(name, True) for name in ("temperature", "top_k", "n", "seed", "max_tokens")],
    *[(name, 2.5) for name in ("presence_penalty", "frequency_penalty", "top_k", "n", "max_tokens", "min_tokens")],
    ("top_p", 0.0), ("top_p", 1.5), ("min_p", 1.1), ("top_k", -2), ("n", 0), ("n", 10**9), ("repetition_penalty", 0.0),
    ("max_tokens", 0), ("max_tokens", -1), ("min_tokens", -1), ("min_tokens", 17), ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("logprobs", -2), ("logprobs", 10**9), ("prompt_logprobs", -2), ("overflow", "wrap"), ("ignore_eos", 1),
    ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", 3), ("stop_token_ids", [-1]),
    ("stop_token_ids", ["a"]), ("logit_bias", [1]), ("logit_bias", {1: math.nan}), ("logit_bias", {"1": 0.0}),
    ("logit_bias", {1: math.inf}), ("logit_bias", {-1: 1.0}), ("skip_special_tokens", None), ("stop_token_ids", 5.5),
    ("cache_salt", None), ("cache_salt", 7),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_a_bad_field_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("field", ["seed", "max_tokens", "logprobs"])
def test_none_is_legal_where_it_means_something(field):
    assert getattr(SamplingParams(**{field: None}), field) is None


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_any_64_bit_seed_is_legal(seed):
    assert SamplingParams(seed=seed).seed == seed


def test_stop_may_be_one_string_or_several():
    assert SamplingParams(stop="END").stop_strings == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")


def test_the_old_name_of_shift_still_works_and_warns_its_caller():
    with pytest.warns(FutureWarning, match="overflow='slide' is now overflow='shift'") as warned:
        assert SamplingParams(overflow="slide") == SamplingParams(overflow="shift")
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize(
    "value", ["\x1b[2J" * 9, "a\nb" * 99_999, 10**5000, [0] * 10**6], ids=["escape", "lines", "int", "list"]
)
@pytest.mark.parametrize("name", ["temperature", "n", "stop", "stop_token_ids", "logit_bias", "overflow", "cache_salt"])
def test_errors_quote_odd_values_shortly(name: str, value: object) -> None:
    if (name, type(value)) in (("stop", str), ("cache_salt", str), ("stop_token_ids", list)):
        return
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**{name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
