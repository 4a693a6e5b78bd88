"""What vLLM's tests of determinism check, asked of Octavo as a program for vLLM would ask: its module, its words.

The cases are written anew from what those tests are about: alone against many, decode against prefill, chunks, prefixes
and a needle among others.
"""

import random
import sys
from types import ModuleType
from typing import Any

import pytest
from tiny_folder import save_tiny

from octavo.gpt import LLM, SamplingParams

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "fold"]
NEEDLE = "There once was a"
LENGTHS = (1, 3, 8, 15, 16, 17, 30)  # of prompts, in words


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of that name, of as much as these tests use."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512))


def open_llm(vllm: Any, model: str, dtype: str = "bfloat16", **options: Any) -> Any:
    """An LLM with the arguments that such tests give."""
    defaults: dict[str, Any] = {
        "max_num_seqs": 8, "max_model_len": 256, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 1,
        "enable_prefix_caching": False, "enforce_eager": True, "num_blocks": 256,
    }  # fmt: skip
    return vllm.LLM(model=model, dtype=dtype, **{**defaults, **options})


def prompts() -> list[Any]:
    """Texts of several lengths, every other one in a dict."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=length)) for length in LENGTHS]
    return [{"prompt": text} if number % 2 else text for number, text in enumerate(texts)]


def logprobs(outputs: list[Any]) -> list[list[tuple[int, float]]]:
    """Each output's tokens, with the log-probability of each."""
    completions = [request.outputs[0] for request in outputs]
    return [
        [(i, entries[i].logprob) for i, entries in zip(each.token_ids, each.logprobs, strict=True)]
        for each in completions
    ]


def drawn(vllm: Any, **options: Any) -> Any:
    return vllm.SamplingParams(
        temperature=0.6, top_p=1.0, max_tokens=8, seed=1234, logprobs=5, ignore_eos=True, **options
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_alone_against_many(dtype: str, vllm: Any, model: str) -> None:
    with open_llm(vllm, model, dtype) as llm:
        one = [logprobs(llm.generate([prompt], drawn(vllm), use_tqdm=False))[0] for prompt in prompts()]
        many = logprobs(llm.generate(prompts(), drawn(vllm), use_tqdm=False))
    assert one == many


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decode_against_prefill(dtype: str, vllm: Any, model: str) -> None:
    with open_llm(vllm, model, dtype) as llm:
        decoded = llm.generate(prompts(), drawn(vllm), use_tqdm=False)
        texts = [{"prompt_token_ids": each.prompt_token_ids + each.outputs[0].token_ids} for each in decoded]
        reading = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=5)
        read = llm.generate(texts, reading, use_tqdm=False)
    for each, again, generated in zip(decoded, read, logprobs(decoded), strict=True):
        ids = again.prompt_token_ids
        first = len(each.prompt_token_ids)
        assert [(i, again.prompt_logprobs[first + k][i].logprob) for k, i in enumerate(ids[first:])] == generated


def test_chunked_against_whole(vllm: Any, model: str) -> None:
    found = []
    for options in ({"max_num_batched_tokens": 2048}, {"max_num_batched_tokens": 16, "enable_chunked_prefill": True}):
        with open_llm(vllm, model, **options) as llm:
            found.append(logprobs(llm.generate(prompts(), drawn(vllm), use_tqdm=False)))
    assert found[0] == found[1]


def test_with_and_without_a_cached_prefix(vllm: Any, model: str) -> None:
    with open_llm(vllm, model) as llm:
        wanted = logprobs(llm.generate(prompts(), drawn(vllm), use_tqdm=False))
    with open_llm(vllm, model, enable_prefix_caching=True) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts(), drawn(vllm), use_tqdm=False)
            assert logprobs(outputs) == wanted
        assert outputs[-1].num_cached_tokens >= 16


def test_a_needle_among_others(vllm: Any, model: str) -> None:
    """The same request at any place of any company."""
    rng = random.Random(1)
    with open_llm(vllm, model) as llm:
        (wanted,) = llm.generate([NEEDLE], drawn(vllm), use_tqdm=False)
        for _ in range(6):
            batch: list[Any] = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(rng.randint(1, 12))]
            place = rng.randrange(len(batch) + 1)
            batch.insert(place, {"prompt": NEEDLE})
            outputs = llm.generate(batch, drawn(vllm), use_tqdm=False)
            assert outputs[place].outputs[0].text == wanted.outputs[0].text
            assert logprobs(outputs[place : place + 1]) == logprobs([wanted])


def test_these_tests_can_fail(vllm: Any, model: str) -> None:
    """Another seed gives other tokens, another dtype other log-probabilities."""
    with open_llm(vllm, model) as llm:
        ours = logprobs(llm.generate(prompts(), drawn(vllm), use_tqdm=False))
        others = logprobs(llm.generate(prompts(), drawn(vllm).replace(seed=1), use_tqdm=False))
    with open_llm(vllm, model, "float32") as llm:
        wider = logprobs(llm.generate(prompts(), drawn(vllm), use_tqdm=False))
    assert all(a != b for a, b in zip(ours, others, strict=True))
    assert all(a != b for a, b in zip(ours, wider, strict=True))
