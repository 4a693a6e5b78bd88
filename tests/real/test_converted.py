"""GGUF files that llama.cpp's own converter wrote from random checkpoints of transformers, which are the oracle."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from converted import CASES, CONTEXT, NUM_TOKENS, Answers, Converter, build, encoder

from octavo.gpt import LLM, SamplingParams
from octavo.kernels.testing.numerics import assert_within

from real_files import hard_texts, real

TYPES = ("f32", "f16", "bf16")
LIMITS = {"num_blocks": 64, "block_size": 4, "max_model_len": CONTEXT}


@pytest.fixture(scope="module")
def convert() -> Iterator[Converter]:
    converter = Converter(real("convert"))
    yield converter
    converter.pool.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    return cache(lambda name: build(CASES[name], tmp_path_factory.mktemp("network")))


def assert_computes(path: Path, answers: Answers) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(path, backend="reference", dtype="float32", **LIMITS) as llm:
        output = llm.generate([answers.prompt], params, use_tqdm=False)[0]
        logits = llm.model.loss(torch.tensor([answers.prompt + answers.tokens])).logits[0]
        ids_of, _ = encoder(answers.folder)
        for text in hard_texts()[:300]:
            assert llm.tokenizer.encode(text) == ids_of(text), repr(text)
    assert_within(logits, answers.true, answers.twin)
    assert output.outputs[0].token_ids == answers.tokens


@pytest.mark.parametrize(("name", "kind"), [(name, TYPES[i % 3]) for i, name in enumerate(CASES)])
def test_it_computes_what_transformers_computes(
    name: str, kind: str, convert: Converter, built: Callable[[str], Answers], tmp_path: Path
) -> None:
    answers = built(name)
    assert_computes(convert(answers.folder, tmp_path / "model.gguf", "--outtype", kind), answers)
