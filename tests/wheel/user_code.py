"""A program of a user's, which type checkers read and nobody runs. Lines that are wrong say what is found there."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor

from octavo.gpt import (
    LLM,
    AsyncLLM,
    Beam,
    CompletionOutput,
    Logprob,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    Score,
    TokenProbability,
    load_tokenizer,
)
from octavo.gpt.models import registry
from octavo.gpt.models.base import LayerCache
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.models.families import llama
from octavo.gpt.models.family import Family
from octavo.gpt.prompts import Prompt
from octavo.kernels import backends
from octavo.kernels.ops import Ops


def opened(folder: Path) -> LLM:
    LLM(folder, "cpu", dtype=torch.bfloat16, max_model_len=None, tokenizer=None, enforce_eager=True)
    LLM(model="gpt2", backend=backends.load("reference"), gpu_memory_utilization=0.9, tensor_parallel_size=1)
    LLM(adapters={"poet": folder, "clerk": "clerk"}, adapter="poet", override_generation_config={"top_k": 1})
    LLM(max_num_seqs="64")  # wrong: arg-type, reportArgumentType
    LLM(max_sequences=64)  # wrong: call-arg, reportCallIssue
    LLM(tensor_parallel_size=2)  # wrong: arg-type, reportArgumentType
    with LLM() as llm:
        assert_type(llm, LLM)
        assert_type(llm.device, torch.device)
        assert_type(llm.get_default_sampling_params(), SamplingParams)
        return llm


def sampled() -> SamplingParams:
    SamplingParams(temperature=0, top_k=None, stop="\n")  # wrong: arg-type, reportArgumentType
    SamplingParams(temprature=0.5)  # wrong: call-arg, reportCallIssue
    params = SamplingParams(0.5, stop=["a", "b"])  # wrong: arg-type, reportArgumentType
    params.seed = 1  # wrong: misc, reportAttributeAccessIssue
    return SamplingParams(
        n=2, temperature=0.8, top_k=50, top_p=0.9, min_p=0.05, seed=7, max_tokens=None, stop=["a", "b"], bad_words="c",
        stop_token_ids=[1, 2], logit_bias={3: -1.0}, logprobs=5, prompt_logprobs=1, allowed_token_ids={4, 5},
    )  # fmt: skip


def generated(llm: LLM, params: SamplingParams) -> list[RequestOutput]:
    llm.generate("text")
    llm.generate(["one", "two"], [params, params], use_tqdm=False)
    llm.generate([1, 2, 3], sampling_params=params)
    llm.generate([[1, 2, 3], [4]], params, lora=["poet", None])
    llm.generate({"prompt": "text"}, lora=LoRARequest("poet", 1, "folder"))
    llm.generate({"prompt_token_ids": [1, 2]})
    llm.generate([{"prompt": "text"}, {"prompt_token_ids": [1, 2], "prompt": None}, "text", [1]])
    texts = ["one", "two"]
    ids = [1, 2, 3]
    llm.generate(texts)
    llm.generate(ids)
    llm.generate({"text": "text"})  # wrong: arg-type, reportArgumentType
    llm.generate(1.5)  # wrong: arg-type, reportArgumentType
    llm.generate("text", {"temperature": 0})  # wrong: arg-type, reportArgumentType
    llm.generate("text", priority=1)  # wrong: arg-type, reportArgumentType
    return llm.generate(tuple(texts), params)


def prompted(llm: LLM, prompt: Prompt) -> list[int]:
    assert_type(llm.stream(prompt), Iterator[str])
    assert_type(llm.next_tokens(prompt, 5), list[TokenProbability])
    assert_type(llm.score(prompt), Score)
    assert_type(llm.beam_search(prompt, beam_width=2), list[list[Beam]])
    return llm.encode(prompt)


def chatted(llm: LLM) -> str:
    llm.chat([{"role": "user", "content": "Hello"}])
    llm.chat([[{"role": "user", "content": "Hello"}], [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    llm.chat(messages, tools=tools, chat_template_kwargs={"enable_thinking": False}, continue_final_message=True)
    llm.chat(messages, SamplingParams(), add_generation_prompt="yes")  # wrong: arg-type, reportArgumentType
    llm.chat("Hello")  # wrong: arg-type, reportArgumentType
    return llm.chat(messages)[0].outputs[0].text


def read(request: RequestOutput) -> dict[int, Logprob]:
    assert_type(request.prompt, str | None)
    assert_type(request.prompt_token_ids, list[int])
    assert_type(request.finished, bool)
    assert_type(request.num_cached_tokens, int | None)
    assert_type(request.metrics.first_token_latency, float)
    output = request.outputs[0]
    assert_type(output, CompletionOutput)
    assert_type(output.text, str)
    assert_type(output.token_ids, list[int])
    assert_type(output.cumulative_logprob, float | None)
    assert_type(output.finish_reason, str | None)
    assert request.text  # wrong: attr-defined, reportAttributeAccessIssue, reportUnknownMemberType
    assert output.text + 1  # wrong: operator, reportOperatorIssue
    assert output.logprobs[0]  # wrong: index, reportOptionalSubscript
    for entries in output.logprobs or []:
        for token_id, entry in entries.items():
            assert_type((token_id, entry.rank, entry.decoded_token), tuple[int, int, str | None])
        return entries
    return {}


async def streamed(messages: list[dict[str, str]]) -> AsyncIterator[str]:
    llm = AsyncLLM("gpt2", max_num_seqs=8)
    AsyncLLM("gpt2", max_num_seqs="8")  # wrong: arg-type, reportArgumentType
    async for request in llm.generate("text", SamplingParams(temperature=0), lora="poet"):
        assert_type(request, RequestOutput)
        yield request.outputs[0].text
    for _ in llm.generate("text"):  # wrong: attr-defined, reportGeneralTypeIssues, reportUnknownVariableType
        pass
    async for request in llm.chat(messages, tools=[{"type": "function"}], chat_template_kwargs={"today": "now"}):
        yield request.outputs[0].text
    llm.chat(messages, tool=[])  # wrong: call-arg, reportCallIssue
    await llm.generate([1, 2], lora_request=LoRARequest("poet", 1, "folder")).aclose()
    await llm.close()


def computed(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    ops = backends.load("triton")
    assert_type(ops, Ops)
    packed = ops.pack(weight, "int8")
    y = ops.linear(x, packed, None, "silu")
    q, k = ops.rope(y, y, positions, positions, positions, True)
    ops.rope(q, k, positions)  # wrong: call-arg, reportCallIssue
    ops.linear(x, "weight")  # wrong: arg-type, reportArgumentType
    ops.swish(q)  # wrong: attr-defined, reportAttributeAccessIssue, reportUnknownMemberType
    backends.load(1)  # wrong: arg-type, reportArgumentType
    return ops.rms_norm(k, weight, 1e-5)


@dataclass(frozen=True, kw_only=True)
class OwnConfig(llama.LlamaConfig):
    family = "own"


class Own(llama.Llama):
    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
        return super().forward(batch, cache)


def from_hf(reader: ConfigReader) -> OwnConfig:
    return OwnConfig(**vars(llama.from_hf(reader)))


def registered(names: Mapping[str, tuple[str, ...]]) -> None:
    registry.register(Family("own", ("OwnForCausalLM",), Own, from_hf, hf_names=names))
    registry.register(Family("own", ("OwnForCausalLM",), Own))  # wrong: call-arg, reportCallIssue
    registry.register(Own)  # wrong: arg-type, reportArgumentType
    assert_type(load_tokenizer("gpt2").encode("text"), list[int])
