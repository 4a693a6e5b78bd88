"""New weights in place, and an engine that gives its memory away: afterwards all is as in a fresh LLM."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_folder import ids_of, load_tiny, save_tiny
from torch import Tensor

from octavo.gpt import LLM, SamplingParams

from checkpoints import GPT2, gpt2_shapes, random_tensors, save_folder

PROMPT = [5, 9, 7, 3, 8, 6, 4, 9, 7, 3]  # two full blocks and more: the second time, the cache knows them
SCORED = SamplingParams(temperature=0, max_tokens=6, logprobs=3, ignore_eos=True)
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}


def other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def saved(folder: Path, tensors: dict[str, Tensor], like: Path) -> Path:
    """A folder like another, of other weights."""
    save_folder(folder, json.loads((like / "config.json").read_text()), tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((like / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape."""
    place = tmp_path_factory.mktemp("rollouts")
    first = save_tiny(place / "first", **WIDE)
    return first, saved(place / "second", other(load_file(first / "model.safetensors")), first)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def answers(llm: LLM) -> list[Any]:
    """Ids, every log-probability and a score, to the bit."""
    completion = llm.generate([PROMPT], SCORED, use_tqdm=False)[0].outputs[0]
    entries = [{i: entry.logprob for i, entry in each.items()} for each in completion.logprobs or []]
    return [list(completion.token_ids), entries, llm.score(PROMPT).nll]


OPTIONS: list[Any] = [
    ("reference", {}),
    pytest.param("triton", {}, marks=pytest.mark.slow),
    ("cpu", {}),
    ("cpu", {"dtype": "bfloat16"}),
    ("cpu", {"weights": "q8_0"}),
    ("cpu", {"weights": "q4_1", "dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("backend", "options"), OPTIONS)
def test_an_update_makes_a_fresh_llm(folders: tuple[Path, Path], backend: str, options: dict[str, Any]) -> None:
    first, second = folders
    llm, fresh = load_tiny(first, backend, **options), load_tiny(second, backend, **options)
    before, wanted = answers(llm), answers(fresh)
    assert ids_of(llm, [PROMPT])[0][:6] == before[0]  # from the prefix cache
    assert before != wanted
    llm.update_weights(tensors_of(second).items())
    assert answers(llm) == wanted
    llm.sleep(level=2)
    llm.wake_up(tags=["weights"])
    llm.update_weights(iter(tensors_of(first).items()))
    llm.wake_up(tags=["kv_cache"])
    assert answers(llm) == before
    assert (llm.weights, llm.model.num_parameters) == (fresh.weights, fresh.model.num_parameters)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.slow), "cpu"])
def test_gpt2_s_turned_and_tied_weights_are_replaced(tmp_path: Path, backend: str) -> None:
    config = GPT2 | {"n_positions": 64, "eos_token_id": 1}
    tensors = random_tensors(gpt2_shapes(config))
    first = save_folder(tmp_path / "first", config, tensors)
    second = save_folder(tmp_path / "second", config, other(tensors))
    llm, fresh = (load_tiny(folder, backend, skip_tokenizer_init=True) for folder in (first, second))
    wanted = answers(fresh)
    assert answers(llm) != wanted
    named = {f"transformer.{name}": value.double() for name, value in tensors_of(second).items()}
    llm.update_weights(named | {"lm_head.weight": named["transformer.wte.weight"]})
    assert answers(llm) == wanted


def test_what_is_left_out_keeps_its_values(folders: tuple[Path, Path]) -> None:
    first, second = folders
    llm, fresh = load_tiny(first), load_tiny(second)
    for name, tensor in tensors_of(second).items():
        if "_proj" not in name or "o_proj" in name or "down_proj" in name:
            llm.update_weights([(name, tensor)])
    assert answers(llm) != answers(fresh)
    llm.update_weights({name: tensor for name, tensor in tensors_of(second).items() if "_proj" in name})
    assert answers(llm) == answers(fresh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}, "model.layers.7.mlp.up_proj.weight has no place in"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.norm.weight is \[3\], the configuration asks for \[64\]"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}, "is of type torch.int32, which cannot be read"),
        ({"model.layers.0.self_attn.k_proj.weight": None}, "layers.0.self_attn.k_proj.weight is missing"),
    ],
)
def test_a_refused_update_changes_nothing(folders: tuple[Path, Path], change: dict[str, Any], message: str) -> None:
    llm = load_tiny(folders[0])
    before = answers(llm)
    given = {name: value for name, value in (tensors_of(folders[1]) | change).items() if value is not None}
    with pytest.raises(ValueError, match=f"^update_weights: tensor .*{message}"):
        llm.update_weights(given)
    with pytest.raises(ValueError, match="takes pairs of a name and a tensor, not 'model'"):
        llm.update_weights(["model"])  # type: ignore[list-item]
    assert answers(llm) == before


def test_a_sleeping_engine_refuses_requests_and_has_no_memory(folders: tuple[Path, Path]) -> None:
    llm = load_tiny(folders[0])
    before = answers(llm)
    llm.sleep()
    assert llm.engine.runner.cache.data.numel() == 0
    for ask in (lambda: llm.generate(["a"], use_tqdm=False), lambda: llm.score(PROMPT), lambda: llm.add(PROMPT)):
        with pytest.raises(RuntimeError, match="takes no requests: the cache was freed by sleep: call wake_up"):
            ask()
    llm.wake_up()
    assert answers(llm) == before
    llm.sleep(level=2)
    assert not any(parameter.numel() for parameter in llm.model.parameters())
    llm.wake_up()
    with pytest.raises(RuntimeError, match=r"the weights were freed, .*: give all of them to update_weights"):
        llm.generate(["a"], use_tqdm=False)
    whole = tensors_of(folders[0])
    llm.update_weights({"model.norm.weight": whole["model.norm.weight"]})
    with pytest.raises(RuntimeError, match="give all of them"):
        llm.generate(["a"], use_tqdm=False)
    llm.update_weights(whole)
    assert answers(llm) == before
    with pytest.raises(ValueError, match=r"level must be an integer in \[1, 2\], not 3"):
        llm.sleep(3)
    with pytest.raises(ValueError, match="tags must be among weights and kv_cache, not 'all'"):
        llm.wake_up(["all"])


def test_an_engine_with_requests_does_not_change(folders: tuple[Path, Path]) -> None:
    llm = load_tiny(folders[0])
    number = llm.add(PROMPT, SCORED)
    for change in (llm.sleep, llm.wake_up, lambda: llm.update_weights(tensors_of(folders[1]))):
        with pytest.raises(RuntimeError, match="needs an idle engine, and 1 requests are unfinished"):
            change()
    llm.abort(number)
    llm.update_weights(tensors_of(folders[1]))


def test_the_prefix_cache_can_be_reset(folders: tuple[Path, Path]) -> None:
    llm = load_tiny(folders[0])
    first = ids_of(llm, [PROMPT])
    assert llm.stats()["blocks_cached"] > 0
    assert llm.reset_prefix_cache()
    assert llm.stats()["blocks_cached"] == 0
    assert ids_of(llm, [PROMPT]) == first


def test_the_model_of_a_gguf_file_is_not_updated(folders: tuple[Path, Path]) -> None:
    llm = load_tiny(folders[0])
    llm.source = folders[0] / "config.json"  # stands for a file of any format
    with pytest.raises(ValueError, match=r"update_weights is for models of Hugging Face folders, this one is of"):
        llm.update_weights([])
