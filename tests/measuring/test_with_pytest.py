"""Every op as a pytest-benchmark case: `make bench-ops` times them, saves, compares and draws histograms.

Without `--benchmark-enable` each case runs once at toy sizes; either way its result is checked first.
"""

from itertools import takewhile

import pytest
import torch

from octavo.bench.measuring.accuracy import verdict
from octavo.bench.measuring.op_cases import Case, Shapes, cases
from octavo.bench.measuring.timing import ColdCaches
from octavo.bench.ops import SIZES, ready
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.kernels.backends import best_for, load
from octavo.kernels.ops import REFERENCE

from tiny import TINY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
FAMILIES = {"gpt2": "gpt2", "llama": "smollm2"}  # whose shapes are timed


def shapes(family: str, timed: bool) -> Shapes:
    config: ModelConfig = KNOWN_SHAPES[FAMILIES[family]] if timed else TINY[family]
    sizes = [values[len(values) // 2] for values in SIZES[DEVICE.type]] if timed else (3, 21, 17)
    return Shapes(config, DEVICE, DTYPE, *sizes, seed=0)


def names(family: str) -> list[str]:
    """A case's name without its sizes, which depend on whether it is timed."""
    found = []
    for case in cases(shapes(family, timed=False)):
        words = takewhile(lambda word: not word[0].isdigit(), case.shape.split())
        found.append("-".join([case.op, *words]))
    return found


def case_of(family: str, index: int, timed: bool) -> Case:
    return list(cases(shapes(family, timed)))[index]


@pytest.mark.parametrize("backend", ["reference", best_for(DEVICE.type)])
@pytest.mark.parametrize(
    ("family", "index"),
    [pytest.param(f, i, id=f"{f}-{name}") for f in FAMILIES for i, name in enumerate(names(f))],
)
def test_speed(benchmark, family, index, backend):
    case = case_of(family, index, timed=benchmark.enabled)
    ops, arguments = load(backend), case.make()
    call, flush = ready(ops, case, arguments), ColdCaches(DEVICE)
    benchmark.group = f"{family} {case.op} {case.shape}"
    benchmark.extra_info.update(num_bytes=case.num_bytes, num_flops=case.num_flops, dtype=str(DTYPE))

    def run():
        call(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        assert verdict(case, call, getattr(REFERENCE, case.op), arguments) != "wrong"
        benchmark.pedantic(run, setup=flush, rounds=30 if benchmark.enabled else 1, warmup_rounds=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_op_that_a_model_calls_has_a_case(family):
    measured = {case.op for case in cases(shapes(family, timed=False))}
    norm = {"gpt2": "layer_norm", "llama": "rms_norm"}[family]
    own = {"gpt2": set(), "llama": {"silu_mul", "rope"}}[family]
    shared = {"linear", "write_kv", "causal_attention", "paged_attention"}
    choosing = {"apply_penalties", "sample", "lm_head_sample", "top_logprobs"}
    assert measured == {norm, f"add_{norm}"} | own | shared | choosing


WRONG = {
    "scaled": lambda result: result * 1.01,
    "one value": lambda result: result.index_fill(0, torch.tensor([0]), 0.0),
    "not a number": lambda result: result.index_fill(0, torch.tensor([0]), float("nan")),
    "another dtype": lambda result: result.half(),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_result_is_never_timed(how):
    case = next(case for case in cases(shapes("llama", timed=False)) if case.op == "paged_attention")
    arguments = case.make()
    spoiled = lambda *args: WRONG[how](REFERENCE.paged_attention(*args))  # noqa: E731
    assert verdict(case, spoiled, REFERENCE.paged_attention, arguments) == "wrong"
    assert verdict(case, REFERENCE.paged_attention, REFERENCE.paged_attention, arguments) == "same"


def test_ids_must_be_the_same_to_the_bit():
    case = next(case for case in cases(shapes("gpt2", timed=False)) if case.op == "sample")

    def off_by_one(*args):
        token_ids, logprobs = REFERENCE.sample(*args)
        return token_ids + 1, logprobs

    assert verdict(case, off_by_one, REFERENCE.sample, case.make()) == "wrong"


def test_what_is_changed_in_place_is_the_result():
    case = next(case for case in cases(shapes("gpt2", timed=False)) if case.op == "write_kv")
    arguments = case.make()
    assert verdict(case, lambda *args: None, REFERENCE.write_kv, arguments) == "wrong"
    assert not arguments[2].any(), "the check must not change the arguments"
