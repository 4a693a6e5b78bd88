"""Every condition on a tiny model, in each dtype and format; and that the comparison can fail."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import DraftModel

from conditions import CONDITIONS, DRAFT, Bits, Load, Request, alone, make_requests

LENGTHS = [1, 2, 7, 16, 17, 33, 50, 3, 20, 41, 12, 5, 8, 30, 24, 64]
FORMATS = [("float32", "auto"), ("bfloat16", "auto"), ("float16", "auto"), ("float32", "q8_0"), ("bfloat16", "q4_1")]
ALL = [(*FORMATS[0], name) for name in CONDITIONS]
SOME = [
    (*each, name)
    for each in FORMATS[1:]
    for name in ("chunks of 32", "prefix hit", "generated-prefix hit", "preempted: recompute")
]

Case = tuple[Load, list[Request], list[Bits]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From (dtype, weights) to a way to load, requests and what they give alone; each made once."""
    folder, made = save_tiny(tmp_path_factory.mktemp("tiny")), {}

    def case(dtype: str, weights: str) -> Case:
        if (dtype, weights) not in made:
            load = partial(_load, folder, dtype=dtype, weights=weights)
            requests = make_requests(range(5, 2000), LENGTHS, max_tokens=10)
            made[dtype, weights] = load, requests, alone(load, requests)
        return made[dtype, weights]

    return case


def _load(folder: Path, **options: Any) -> Any:
    if options.get("speculative") == DRAFT:
        options["speculative"] = DraftModel(folder, num_tokens=3)
    return load_tiny(folder, **{"block_size": 16, "num_blocks": 400, "max_model_len": 128, **options})


@pytest.mark.parametrize(("dtype", "weights", "name"), ALL + SOME)
def test_no_condition_changes_a_bit(dtype: str, weights: str, name: str, cases: Any) -> None:
    case = cases(dtype, weights)
    assert CONDITIONS[name](*case) == [True] * len(LENGTHS)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_bit_that_differs_is_seen(name: str, cases: Any) -> None:
    load, requests, wanted = cases(*FORMATS[0])
    changed = [Bits(own.token_ids, [*own.logprobs[:-1], "{}"]) for own in wanted]
    found = CONDITIONS[name](load, requests, changed)
    assert sum(found) <= (len(found) // 8 if name == "generated = scored" else 0)  # processed ones are not compared
