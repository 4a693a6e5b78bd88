"""Requests, and the conditions under which each must have the bits that it has alone: tokens and log-probabilities.

A condition gets a way to load the model, the requests and what they give alone, makes sure that it really came about,
and says of each request whether it gave the same.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from octavo.gpt import LLM, NGram, RequestOutput, SamplingParams

Load = Callable[..., LLM]  # from options of LLM


class Request(NamedTuple):
    prompt: list[int]
    params: SamplingParams


class Bits(NamedTuple):
    """What a request gives; a float's repr tells its bits."""

    token_ids: list[int]
    logprobs: list[str]  # of each token


DRAFT = "draft"  # what a load is asked for as `speculative` where it should name a DraftModel

Condition = Callable[[Load, list[Request], list[Bits]], list[bool]]

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"top_k": 40, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0, "repetition_penalty": 1.1, "logit_bias": {11: 2.0, 12: -3.0}},
    {"temperature": 1.3},
    {"temperature": 0.8, "top_p": 0.9, "logprobs_mode": "processed_logprobs"},
]


def make_requests(ids: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[Request]:
    """Requests whose prompts are pieces of a text's ids, one of each length, with options in turn."""
    rng = random.Random(0)
    requests = []
    for number, length in enumerate(lengths):
        start = rng.randrange(len(ids) - length)
        params = SamplingParams(
            seed=number, max_tokens=max_tokens, ignore_eos=True, logprobs=2, **OPTIONS[number % len(OPTIONS)]
        )
        requests.append(Request(list(ids[start : start + length]), params))
    return requests


def run(llm: LLM, requests: Sequence[Request]) -> list[RequestOutput]:
    return llm.generate([each.prompt for each in requests], [each.params for each in requests], use_tqdm=False)


def bits(request: RequestOutput) -> Bits:
    output = request.outputs[0]
    return Bits(list(output.token_ids), list(map(repr, output.logprobs or [])))


def alone(load: Load, requests: Sequence[Request]) -> list[Bits]:
    """What each request gives with the engine to itself."""
    with load(enable_prefix_caching=False) as llm:
        return [bits(run(llm, [each])[0]) for each in requests]


def same(outputs: Sequence[RequestOutput], wanted: Sequence[Bits]) -> list[bool]:
    return [bits(each) == own for each, own in zip(outputs, wanted, strict=True)]


def together(load: Load, requests: list[Request], wanted: list[Bits], **options: Any) -> list[bool]:
    with load(**options) as llm:
        return same(run(llm, requests), wanted)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_threads(number: int, load: Load, requests: list[Request], wanted: list[Bits]) -> list[bool]:
    with threads(number):
        return together(load, requests, wanted)


def prefix_hit(load: Load, requests: list[Request], wanted: list[Bits]) -> list[bool]:
    with load(block_size=8) as llm:
        run(llm, requests)
        again = run(llm, requests)
        assert sum(bool(each.num_cached_tokens) for each in again) > len(again) / 2
        return same(again, wanted)


def generated_prefix_hit(load: Load, requests: list[Request], wanted: list[Bits]) -> list[bool]:
    """Each goes on after some of its own tokens: what was generated is read from the cache as a part of the prompt."""
    goes_on = [own.params.presence_penalty == 0 for own in requests]  # such penalties tell prompts from outputs
    cut = len(wanted[0].token_ids) - 2
    rest = [
        Request(each.prompt + own.token_ids[:cut], replace(each.params, max_tokens=2)) if goes else each
        for each, own, goes in zip(requests, wanted, goes_on, strict=True)
    ]
    left = [
        Bits(own.token_ids[cut:], own.logprobs[cut:]) if goes else own
        for own, goes in zip(wanted, goes_on, strict=True)
    ]
    with load(block_size=4) as llm:
        run(llm, requests)
        outputs = run(llm, rest)
    hits = [
        (out.num_cached_tokens or 0) > len(each.prompt)
        for out, each, goes in zip(outputs, requests, goes_on, strict=True)
        if goes
    ]
    assert sum(hits) > len(hits) / 2
    return same(outputs, left)


def preempted(load: Load, requests: list[Request], wanted: list[Bits], **options: Any) -> list[bool]:
    """The cache holds a third of what all need together."""
    sizes = [-(-(len(each.prompt) + each.params.max_tokens) // 16) for each in requests]  # type: ignore[operator]
    with load(num_blocks=max(sum(sizes) // 3, 2 * max(sizes)), max_model_len=16 * max(sizes), **options) as llm:
        outputs = run(llm, requests)
        assert llm.stats()["requests_preempted"] > 0
        return same(outputs, wanted)


def speculated(speculative: Any, load: Load, requests: list[Request], wanted: list[Bits]) -> list[bool]:
    with load(speculative=speculative, max_num_seqs=4) as llm:  # beyond 8 queries a step nobody guesses on a CPU
        outputs = run(llm, requests)
        stats = llm.stats()
        assert stats["tokens_accepted"] < stats["tokens_proposed"]  # a text that does not repeat may confirm none
        return same(outputs, wanted)


def scored(load: Load, requests: list[Request], wanted: list[Bits]) -> list[bool]:
    """Prompt and output are read as one prompt, and as a text to score."""
    texts = [each.prompt + own.token_ids for each, own in zip(requests, wanted, strict=True)]
    with load(enable_prefix_caching=False) as llm:
        outputs = llm.generate(texts, SamplingParams(max_tokens=1, prompt_logprobs=2), use_tqdm=False)
        nlls = [llm.score(text).nll for text in texts]
    raw = [each.params.logprobs_mode != "processed_logprobs" for each in requests]
    found = []
    for out, text, own, nll, is_raw in zip(outputs, texts, wanted, nlls, raw, strict=True):
        entries = [each for each in out.prompt_logprobs or [] if each is not None]
        of_chosen = [each[token_id].logprob for each, token_id in zip(entries, text[1:], strict=True)]
        generated = list(map(repr, entries[-len(own.token_ids) :]))
        found.append(nll == -math.fsum(of_chosen) / len(of_chosen) and (generated == own.logprobs or not is_raw))
    return found


CONDITIONS: dict[str, Condition] = {
    "in company": together,
    "blocks of 8": partial(together, block_size=8),
    "blocks of 64": partial(together, block_size=64),
    "chunks of 32": partial(together, max_num_batched_tokens=32),
    "one thread": partial(on_threads, 1),
    "two threads": partial(on_threads, 2),
    "prefix hit": prefix_hit,
    "generated-prefix hit": generated_prefix_hit,
    "preempted: swap": partial(preempted, preemption="swap"),
    "preempted: recompute": partial(preempted, preemption="recompute"),
    "n-gram speculation": partial(speculated, NGram(num_tokens=3, min_match=1)),
    "draft speculation": partial(speculated, DRAFT),
    "generated = scored": scored,
}
