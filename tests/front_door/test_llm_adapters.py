"""Adapters by their front doors: LLM's arguments, a request's `lora`, vLLM's LoRARequest, loading and unloading."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.gpt import LLM, AsyncLLM, LoRARequest, SamplingParams

from checkpoints import LLAMA, llama_tensors, save_folder

PROMPT = [5, 9, 3, 14]
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def save_adapter(folder: Path, seed: int) -> None:
    """A random adapter of the queries and the feed-forward's last product."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, in_features, out_features in (("self_attn.q_proj", 12, 18), ("mlp.down_proj", 20, 12)):
        for layer in range(2):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, in_features, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out_features, 2, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("adapters")
    save_folder(base / "model", LLAMA, llama_tensors())
    for seed, name in enumerate(("kind", "terse")):
        save_adapter(base / name, seed)
    return base


def open_llm(folder: Path, **options: Any) -> LLM:
    sizes = {"max_model_len": 16, "num_blocks": 32, "block_size": 4}
    return LLM(folder / "model", backend="reference", dtype="float32", device="cpu", **{**sizes, **options})


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return open_llm(folder, adapters={"kind": folder / "kind", "terse": str(folder / "terse")})


def ids(requests: list[Any]) -> list[list[int]]:
    return [request.outputs[0].token_ids for request in requests]


def test_each_request_names_its_own_adapter(llm):
    names = [None, "kind", "terse"]
    together = ids(llm.generate([PROMPT] * 3, PARAMS, lora=names))
    assert together == [ids(llm.generate(PROMPT, PARAMS, lora=name))[0] for name in names]
    assert len({tuple(tokens) for tokens in together}) == 3
    assert ids(llm.generate([PROMPT] * 2, PARAMS, lora="kind")) == [together[1]] * 2


def test_every_door_takes_an_adapter(llm):
    (plain,), (kind,) = ids(llm.generate(PROMPT, PARAMS)), ids(llm.generate(PROMPT, PARAMS, lora="kind"))
    llm.add(PROMPT, PARAMS, lora="kind")
    finished: list[Any] = []
    while llm.has_unfinished:
        finished += [request for request in llm.step() if request.finished]
    assert ids(finished) == [kind]
    assert llm.next_tokens(PROMPT, 1, lora="kind")[0].token_id == kind[0]
    assert llm.next_tokens(PROMPT, 1)[0].token_id == plain[0]
    assert llm.draw(PROMPT, PARAMS, 1, lora="kind").candidates[0].token_id == kind[0]
    assert llm.score(PROMPT, lora="kind").nll != pytest.approx(llm.score(PROMPT).nll)
    (beams,) = llm.beam_search(PROMPT, beam_width=1, max_tokens=1, lora="kind")
    assert beams[0].token_ids == kind[:1]


def test_prompt_logprobs_are_the_adapters(llm):
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    plain, kind = llm.generate([PROMPT] * 2, params, lora=[None, "kind"])
    sums = [sum(next(iter(entry.values())).logprob for entry in r.prompt_logprobs[1:]) for r in (plain, kind)]
    for total, name in zip(sums, (None, "kind"), strict=True):
        assert -total / 3 == pytest.approx(llm.score(PROMPT, lora=name).nll, abs=1e-4)


def test_an_async_request_names_its_adapter(folder, llm):
    async def answer() -> list[int]:
        sizes: Any = {"max_model_len": 16, "num_blocks": 32, "block_size": 4, "dtype": "float32", "device": "cpu"}
        served = AsyncLLM(folder / "model", backend="reference", adapters={"kind": folder / "kind"}, **sizes)
        async for output in served.generate(PROMPT, PARAMS, lora="kind"):
            tokens = output.outputs[0].token_ids
        await served.close()
        return tokens

    assert [asyncio.run(answer())] == ids(llm.generate(PROMPT, PARAMS, lora="kind"))


def test_one_adapter_may_serve_every_request(folder, llm):
    with open_llm(folder, adapter=folder / "kind") as own:
        assert ids(own.generate(PROMPT, PARAMS)) == ids(llm.generate(PROMPT, PARAMS, lora="kind"))


def test_words_of_vllm(folder, llm):
    with open_llm(folder, enable_lora=True, max_loras=4, max_lora_rank=16) as other:
        request = LoRARequest("kind", 1, str(folder / "kind"))
        expected = ids(llm.generate(PROMPT, PARAMS, lora="kind"))
        assert ids(other.generate([PROMPT], sampling_params=PARAMS, lora_request=request)) == expected
        assert ids(other.generate([PROMPT], PARAMS, lora_request=[request])) == expected
        with pytest.raises(ValueError, match="'kind' is loaded already, from another folder"):
            other.generate(PROMPT, PARAMS, lora_request=LoRARequest("kind", 2, str(folder / "terse")))
        assert not other.has_unfinished


def test_adapters_come_and_go_between_steps(folder):
    with open_llm(folder) as llm:
        plain = ids(llm.generate(PROMPT, PARAMS))
        llm.load_adapter("one", folder / "kind")
        kind = ids(llm.generate(PROMPT, PARAMS, lora="one"))
        llm.add(PROMPT, PARAMS, lora="one")
        with pytest.raises(ValueError, match="'one' is in use by 1 unfinished"):
            llm.unload_adapter("one")
        while llm.has_unfinished:
            llm.step()
        llm.unload_adapter("one")
        with pytest.raises(ValueError, match="no adapter 'one' is loaded"):
            llm.generate(PROMPT, PARAMS, lora="one")
        llm.load_adapter("one", folder / "terse")  # what the cache holds for the old one must not be found
        terse = ids(llm.generate(PROMPT, PARAMS, lora="one"))
        assert len({str(tokens) for tokens in (plain, kind, terse)}) == 3


@pytest.mark.parametrize(
    ("lora", "complaint"),
    [
        ("nobody", "no adapter 'nobody' is loaded"),
        (["kind"], "lora has 1 entries for 2 prompts"),
        (["kind", 7], "lora must be"),
        (7, "lora must be"),
        (LoRARequest("new", 1, "/no/such/folder"), "no such file or folder"),
    ],
)
def test_what_names_no_adapter_is_refused_and_nothing_is_queued(lora, complaint, llm):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        llm.generate([PROMPT] * 2, PARAMS, lora=lora)
    assert not llm.has_unfinished
    assert len(ids(llm.generate(PROMPT, PARAMS))[0]) == 6


@pytest.mark.parametrize(("name", "complaint"), [("kind", "is loaded already"), ("", "at least one"), (None, "a text")])
def test_names_that_no_adapter_can_have(name, complaint, llm, folder):
    with pytest.raises(ValueError, match=complaint):
        llm.load_adapter(name, folder / "kind")


def test_an_adapter_that_cannot_be_read_ends_the_constructor(folder):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_llm(folder, adapter=folder / "nowhere")
