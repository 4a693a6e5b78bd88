"""Every family against transformers, on random checkpoints with biases that are not zero and norms that are not one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from converted import CASES as CONVERTED
from networks import VARIANTS, answers, make

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.models.registry import by_model_type
from octavo.kernels.testing.numerics import assert_within

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 58, 9, 7, 9, 32, 38]
COMPANY = [[4, 8, 15, 16, 23, 42], [1] * 9]
BACKENDS = {"reference": 32, "cpu": 32, "triton": 2}  # and the number of tokens drawn


README = Path(__file__).parents[2] / "README.md"


def table() -> list[str]:
    """The README's lines: a network, and whether tests/real compares a file of it by llama.cpp's converter."""
    lines = [
        "| network | `model_type` | backends | GGUF architectures of the family | llama.cpp's own file |",
        "| --- | --- | --- | --- | --- |",
    ]
    compared = {case.network for case in CONVERTED.values()}
    for name, (kind, _) in VARIANTS.items():
        family = by_model_type(kind)
        assert family is not None
        types, file = ", ".join(family.gguf_types) or "-", "yes" if name in compared else "-"
        lines.append(f"| {name} | {kind} | {', '.join(BACKENDS)} | {types} | {file} |")
    return lines


def test_the_readme_lists_what_is_tested_here() -> None:
    text = README.read_text()
    listed = text.split("<!-- families -->\n")[1].split("<!-- /families -->")[0]
    assert listed == "".join(line + "\n" for line in table())


@cache
def oracle(name: str) -> tuple[Any, list[int], torch.Tensor, torch.Tensor]:
    """The network, 32 greedy tokens, and its logits of them in float64 and in float32."""
    model = make(name)
    return model, *answers(model, PROMPT, 32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("family")
        oracle(name)[0].save_pretrained(folder)
        return folder

    return save


# A few networks meet every kind of attention, norm and rotary; `make families` has all of them on all backends.
OFTEN = ("Gemma 2", "Qwen 3", "Phi-2", "GLM-4", "StarCoder 2")
CASES = [
    pytest.param(name, backend, marks=[] if backend == "reference" or name in OFTEN else [pytest.mark.families])
    for name in VARIANTS
    for backend in BACKENDS
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_it_computes_what_transformers_computes(name: str, backend: str, saved: Any) -> None:
    _, tokens, true, twin = oracle(name)
    num_tokens = BACKENDS[backend]
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    limits = {"num_blocks": 64, "block_size": 4, "max_num_batched_tokens": 8, "max_model_len": 64}
    with LLM(saved(name), backend=backend, dtype="float32", **limits) as llm:
        company = COMPANY if backend != "triton" else []
        request = llm.generate([PROMPT, *company], params, use_tqdm=False)[0]
        assert request.outputs[0].token_ids == tokens[:num_tokens]
        ids = torch.tensor([PROMPT + tokens[: 32 if backend != "triton" else 1]])
        got = llm.model.loss(ids).logits[0]
    rows = ids.shape[1]
    assert_within(got, true[:rows], twin[:rows])
