"""Requests on the cpu backend: tokens and log-probabilities are the same bits, whatever else the engine does."""

from pathlib import Path
from typing import Any

import pytest
from tiny_folder import load_tiny, save_tiny

from octavo.gpt import LLM, SamplingParams

PROMPTS = [[*range(5, 5 + length)] for length in (1, 2, 7, 16, 17, 33, 50, 3)]
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=2)
DRAWN = SamplingParams(seed=3, max_tokens=10, ignore_eos=True, logprobs=2, top_p=0.9)
PARAMS = [GREEDY, DRAWN] * (len(PROMPTS) // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def bits(llm: LLM, numbers: list[int]) -> list[Any]:
    """What the requests of those numbers get, run together: a float's repr tells its bits."""
    requests = llm.generate([PROMPTS[i] for i in numbers], [PARAMS[i] for i in numbers], use_tqdm=False)
    return [(list(each.outputs[0].token_ids), repr(each.outputs[0].logprobs)) for each in requests]


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("float32", "auto"), ("bfloat16", "auto"), ("float16", "auto"), ("float32", "q8_0"), ("bfloat16", "q4_1")],
)
def test_company_chunks_blocks_and_prefixes_change_no_bit(folder: Path, dtype: str, weights: str) -> None:
    options: dict[str, Any] = {"dtype": dtype, "weights": weights}
    with load_tiny(folder, **options, enable_prefix_caching=False) as llm:
        alone = [bits(llm, [i])[0] for i in range(len(PROMPTS))]
        assert bits(llm, [*range(len(PROMPTS))]) == alone
    others = {"block_size": 8, "num_blocks": 40, "max_num_batched_tokens": 16, "max_num_seqs": 3}
    with load_tiny(folder, **options, **others) as llm:
        for _ in range(2):  # the second time with a prefix of its own in the cache
            assert bits(llm, [*range(len(PROMPTS))]) == alone
        assert llm.stats()["prefix_hit_rate"] > 0
