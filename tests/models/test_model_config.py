"""Configurations: what config.json and GGUF metadata say, and every unsupported option refused by name and value."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.gpt.loading.gguf import open_gguf_checkpoint
from octavo.gpt.loading.hf import read_config
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.llama import LlamaConfig
from octavo.gpt.models.rope import RopeScaling

from checkpoints import GPT2, LLAMA, LLAMA_GGUF, llama_gguf_tensors, llama_tensors, save_gguf


def config_of(tmp_path: Path, table: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(table))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return read_config(tmp_path)


@pytest.mark.parametrize("architectures", [None, ["GPT2Model"], ["GPT2LMHeadModel"]])
def test_gpt2_is_known_by_any_of_its_names(tmp_path: Path, architectures: list[str] | None) -> None:
    assert config_of(tmp_path, GPT2 | {"architectures": architectures}).family == "gpt2"


@pytest.mark.parametrize(
    ("table", "generation", "eos_ids"),
    [
        ({"eos_token_id": 3}, None, (3,)),
        ({"eos_token_id": [3, 4]}, None, (3, 4)),
        ({"eos_token_id": 3}, {"eos_token_id": [5, 6]}, (5, 6, 3)),
        ({"eos_token_id": [3, 5]}, {"eos_token_id": [5, 6]}, (5, 6, 3)),
        ({"eos_token_id": 3}, {"eos_token_id": None}, (3,)),
        ({"eos_token_id": None}, None, ()),
        ({"eos_token_id": [3, 50256]}, None, (3,)),  # an id outside the vocabulary never occurs
    ],
)
def test_end_of_text_ids(
    tmp_path: Path, table: dict[str, Any], generation: dict[str, Any] | None, eos_ids: tuple[int, ...]
) -> None:
    assert config_of(tmp_path, LLAMA | table, generation).eos_ids == eos_ids


@pytest.mark.parametrize(
    ("table", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, RopeScaling("linear", 2.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            5e5,
            RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        ),
    ],
)  # fmt: skip
def test_rotary_options_of_transformers_4_and_5(
    tmp_path: Path, table: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    config = config_of(tmp_path, LLAMA | table)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention = True is not supported"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (GPT2 | {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights = False"),
        (GPT2 | {"activation_function": "relu"}, "activation_function = 'relu' is not supported"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (LLAMA | {"sliding_window": 4096}, "sliding_window = 4096"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type = 'yarn' is not supported"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_type = 'dynamic' is not supported"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "factor must be a positive number, not None"),
        (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        (LLAMA | {"rope_parameters": 3}, "rope_parameters and rope_scaling must be objects"),
        (GPT2 | {"architectures": ["BertModel"]}, "architecture BertModel is not supported"),
        (GPT2 | {"architectures": ["LlamaModel"]}, "model_type 'gpt2' is not supported"),
        (GPT2 | {"architectures": None, "model_type": "t5"}, "model_type 't5' is not supported"),
        ({}, "model_type None is not supported"),
        (GPT2 | {"n_layer": 0}, "n_layer must be a positive integer, not 0"),
        (GPT2 | {"n_embd": "12"}, "n_embd must be a positive integer, not '12'"),
        (GPT2 | {"n_head": 5}, "dim .12. must be num_heads x head_dim"),
        (GPT2 | {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a positive number, not nan"),
        (GPT2 | {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        (GPT2 | {"eos_token_id": "<end>"}, "eos_token_id must be a token id"),
        (LLAMA | {"num_key_value_heads": 2}, "num_heads .3. must be a multiple of num_kv_heads .2."),
        (LLAMA | {"head_dim": 5}, "head_dim must be even"),
        (LLAMA | {"max_position_embeddings": 2**40}, "context_size must be"),
        (LLAMA | {"num_hidden_layers": 20_000}, "num_layers must be at most 1000, not 20000"),
        (LLAMA | {"head_dim": 2**20}, "head_dim must be at most 1024"),
        (
            LLAMA | {"head_dim": 512, "max_position_embeddings": 2**20},
            r"context_size \(1048576\) x head_dim \(512\) must",
        ),
        (LLAMA | {"hidden_size": 10**30}, "dim must be a positive integer"),
        ([1], "not a JSON object"),
    ],
)
def test_unsupported_configurations(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        config_of(tmp_path, table)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_config(tmp_path)


def test_gguf_metadata_becomes_a_configuration(tmp_path: Path) -> None:
    fields = {
        "llama.rope.freq_base": 5e5, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 99,
    }  # fmt: skip
    tensors = llama_gguf_tensors(llama_tensors(), 3, 1)
    del tensors["output.weight"]
    config = open_gguf_checkpoint(save_gguf(tmp_path / "m.gguf", LLAMA_GGUF | fields, tensors))[0].config
    assert config == LlamaConfig(
        vocab_size=29, context_size=16, dim=12, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=6,
        intermediate_dim=20, norm_eps=config.norm_eps, tied_embeddings=True, rope_theta=5e5, rope_interleaved=True,
        bos_id=1,
        rope_scaling=RopeScaling("linear", 4.0), eos_ids=(2, 5),
    )  # fmt: skip
    assert config.norm_eps == pytest.approx(1e-6)  # a float32 in the file


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture mamba is not supported"),
        ({"llama.expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
        ({"llama.rope.dimension_count": 4}, r"llama\.rope\.dimension_count = 4 is not supported \(only 6\)"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type = 'yarn' is not supported"),
        ({"llama.rope.scaling.type": "linear"}, r"llama\.rope\.scaling\.factor must be a positive number"),
        ({"llama.attention.head_count_kv": [1, 3]}, r"llama\.attention\.head_count_kv must be a positive integer"),
        ({"llama.context_length": 2**31}, "context_size must be"),
    ],
)
def test_unsupported_gguf_metadata(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    file = save_gguf(tmp_path / "m.gguf", LLAMA_GGUF | fields, llama_gguf_tensors(llama_tensors(), 3, 1))
    with pytest.raises(ValueError, match=rf"m\.gguf: {message}"):
        open_gguf_checkpoint(file)


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        ({"llama.rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.type": "none"}, None),
        ({"llama.rope.scaling.type": "none"}, None),
        ({}, None),
    ],
)
def test_a_gguf_scaling_factor_alone_is_linear(
    tmp_path: Path, fields: dict[str, Any], scaling: RopeScaling | None
) -> None:
    tensors = llama_gguf_tensors(llama_tensors(), 3, 1)
    config = open_gguf_checkpoint(save_gguf(tmp_path / "m.gguf", LLAMA_GGUF | fields, tensors))[0].config
    assert isinstance(config, LlamaConfig)
    assert config.rope_scaling == scaling
    with_factors = tensors | {"rope_freqs.weight": torch.ones(3)}
    if scaling is not None:
        with pytest.raises(ValueError, match="linear rotary scaling beside tensor rope_freqs"):
            open_gguf_checkpoint(save_gguf(tmp_path / "f.gguf", LLAMA_GGUF | fields, with_factors))


@pytest.mark.parametrize("factors", [torch.ones(4), torch.tensor([1.0, 0.0, 1.0])])
def test_bad_rope_factors_of_a_gguf(tmp_path: Path, factors: Tensor) -> None:
    tensors = llama_gguf_tensors(llama_tensors(), 3, 1) | {"rope_freqs.weight": factors}
    with pytest.raises(ValueError, match=r"m\.gguf: tensor rope_freqs\.weight must"):
        open_gguf_checkpoint(save_gguf(tmp_path / "m.gguf", LLAMA_GGUF, tensors))
