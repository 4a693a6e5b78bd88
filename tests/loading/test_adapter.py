"""PEFT's adapter files: what is read, and what is refused in one line that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.gpt.loading.adapter import load_adapter
from octavo.gpt.models.base import Model

from tiny import TINY_GPT2, TINY_LLAMA, tiny_model

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "bias": "none"}


def tensors(module: str, in_features: int, out_features: int, rank: int = 2) -> dict[str, Tensor]:
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": torch.ones(rank, in_features),
        f"{name}.lora_B.weight": torch.ones(out_features, rank),
    }


GOOD = {**tensors(Q, 32, 32), **tensors(UP, 32, 48)}


def save(folder: Path, config: Any = None, held: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    save_file(GOOD if held is None else held, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny_model(TINY_LLAMA)


def test_projections_are_rows_of_our_stacked_ones(llama, tmp_path):
    updates = load_adapter(save(tmp_path), llama).updates
    assert {name: [update.first for update in parts] for name, parts in updates.items()} == {
        "layers.0.self_attn.qkv_proj": [0],
        "layers.1.mlp.gate_up_proj": [48],
    }
    (up,) = updates["layers.1.mlp.gate_up_proj"]
    assert up.down.shape == (2, 32)
    assert torch.equal(up.up, torch.full((48, 2), 4.0))  # 8 / 2


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"lora_alpha": 3}, 1.5),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 1}}, 0.5),
        ({"alpha_pattern": {"1\\.mlp.up_proj": 6}}, 3.0),
        ({"alpha_pattern": {"^model.layers.1.mlp.up_proj": 10}}, 5.0),
        ({"alpha_pattern": {"p_proj": 1, "^up_proj": 1}}, 4.0),
    ],
)
def test_the_scale_is_in_the_second_matrix(options, scale, llama, tmp_path):
    (up,) = load_adapter(save(tmp_path, options), llama).updates["layers.1.mlp.gate_up_proj"]
    assert torch.equal(up.up, torch.full((48, 2), scale))


def test_names_may_lack_their_prefixes(llama, tmp_path):
    bare = {name.removeprefix("base_model.model.model."): tensor for name, tensor in GOOD.items()}
    assert (
        load_adapter(save(tmp_path, held=bare), llama).updates.keys()
        == load_adapter(save(tmp_path), llama).updates.keys()
    )


def test_values_take_the_models_dtype(llama, tmp_path):
    model = tiny_model(TINY_LLAMA).to(torch.bfloat16)
    (update,) = load_adapter(save(tmp_path), model).updates["layers.0.self_attn.qkv_proj"]
    assert update.down.dtype == update.up.dtype == torch.bfloat16


def test_what_changes_nothing_is_accepted(llama, tmp_path):
    options = {"lora_dropout": 0.1, "task_type": "CAUSAL_LM", "layer_replication": None, "use_dora": False, "new": {}}
    load_adapter(save(tmp_path, {**options, "init_lora_weights": "gaussian", "rank_pattern": {}}), llama)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"an_option_of_tomorrow": 1}, "an_option_of_tomorrow = 1"),
        ({"an\noption": "x" * 1000}, "option"),
        ({"r": 0}, "r must be a positive integer, not 0"),
        ({"r": 3}, "has rank 2, adapter_config.json says r = 3"),
        ({"lora_alpha": "many"}, "lora_alpha must be a positive number"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"alpha_pattern": ["up_proj"]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "only names of modules"),
        ({"alpha_pattern": {"up_proj": -1}}, "up_proj must be a positive number"),
    ],
)
def test_options_that_change_the_computation_are_refused(options, complaint, llama, tmp_path):
    refused(save(tmp_path, options), llama, "adapter_config.json", complaint)


def refused(folder: Path, model: Model, *words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_adapter(folder, model)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    for word in words:
        assert word in said


LAYER = "base_model.model.model.layers.0"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (tensors("model.layers.2.mlp.up_proj", 32, 48), "layers.2.mlp.up_proj.lora_A"),
        (tensors("lm_head", 32, 97), "lm_head.lora_A.weight changes no attention or feed-forward projection"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 97)}, "lora_embedding_A"),
        ({f"{LAYER}.self_attn.q_proj.lora_magnitude_vector.weight": torch.ones(32)}, "lora_magnitude_vector"),
        ({f"{LAYER}.self_attn.k_proj.lora_A.weight": torch.ones(2, 32)}, "has no lora_B beside it"),
        (tensors("model.layers.0.self_attn.k_proj", 32, 32), "is [32, 2], the model asks for [16, 2]"),
        (tensors("model.layers.0.self_attn.k_proj", 31, 16), "is [2, 31], the model asks for [2, 32]"),
        (tensors("layers.0.self_attn.q_proj", 32, 32), "are of one projection"),
        ({f"base_model.model.{Q}.lora_A.weight": torch.ones(2, 32, dtype=torch.int32)}, "of type I32"),
        ({f"base_model.model.{Q}.lora_A.weight": torch.ones(())}, "is []"),
        ({f"base_model.model.{Q}.lora_A.weight": torch.ones(0, 32)}, "is [0, 32]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, complaint, llama, tmp_path):
    refused(save(tmp_path, held={**GOOD, **changes}), llama, "adapter_model.safetensors", complaint)


def test_an_adapter_of_another_family_is_refused(tmp_path):
    refused(save(tmp_path), tiny_model(TINY_GPT2), "q_proj.lora_A.weight", "of a gpt2 of this configuration")


def test_files_that_are_missing_empty_or_pickles_are_refused(llama, tmp_path):
    refused(tmp_path / "nowhere", llama, "nowhere: no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", llama, "adapter_config.json is missing")
    refused(save(tmp_path, held={}), llama, "no LoRA tensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    refused(tmp_path, llama, "adapter_model.safetensors", "no such file")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refused(tmp_path, llama, "adapter_model.bin", "pickle")
