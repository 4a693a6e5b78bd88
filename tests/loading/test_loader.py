"""Loading: every parameter bit for bit from every layout, and every unsupported or lying checkpoint refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import save_tiny
from torch import Tensor

from octavo.gpt.loading.loader import LoadedModel, load_model, load_tokenizer, resolve_device, resolve_dtype
from octavo.gpt.models.families.gpt2 import GPT2Config
from octavo.gpt.models.families.llama import LlamaConfig
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.kernels.ops import REFERENCE

from checkpoints import (
    GPT2,
    LLAMA,
    LLAMA_GGUF,
    gpt2_tensors,
    llama_gguf_tensors,
    llama_shapes,
    llama_tensors,
    random_tensors,
    raw_safetensors,
    save_folder,
    save_gguf,
)

CPU = torch.device("cpu")


def load(path: Path | str, dtype: str = "float32") -> LoadedModel:
    return load_model(path, REFERENCE, dtype, "cpu")


def weights(path: Path | str, dtype: str = "float32") -> dict[str, Tensor]:
    """Every weight of the loaded model by its name; the reference packs nothing, so they are plain tensors."""
    found = {}
    for prefix, module in load(path, dtype).model.named_modules():
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if value is not None:
                found[f"{prefix}.{name}"] = value
    return found


def expected_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names: q, k, v and gate, up are stacked, norms say what they are before."""
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    plain = {
        re.sub("|".join(norms), lambda found: norms[found[0]], name.removeprefix("model.")): tensor
        for name, tensor in tensors.items()
    }
    result = {name: tensor for name, tensor in plain.items() if not re.search(r"[qkv]_proj|gate_proj|up_proj", name)}
    for i in range(LLAMA["num_hidden_layers"]):
        attention, mlp = f"layers.{i}.self_attn.", f"layers.{i}.mlp."
        result[f"{attention}qkv_proj.weight"] = torch.cat([plain[f"{attention}{part}_proj.weight"] for part in "qkv"])
        result[f"{mlp}gate_up_proj.weight"] = torch.cat([plain[f"{mlp}{part}_proj.weight"] for part in ("gate", "up")])
    return result


def expected_gpt2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names: Conv1D weights turned."""
    return {name: tensor.T if ".c_" in name and tensor.dim() == 2 else tensor for name, tensor in tensors.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


# What is loaded


@pytest.mark.parametrize(
    ("config", "generation", "eos_ids"),
    [({"eos_token_id": 5}, {"eos_token_id": [7]}, (7, 5, 1)), ({"eos_token_id": None}, {}, (1,))],
    ids=["all three", "the tokenizer alone"],
)
def test_what_any_file_calls_end_of_text_ends_a_request(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], eos_ids: tuple[int, ...]
) -> None:
    folder = save_tiny(tmp_path, **config)  # its tokenizer ends texts with id 1
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load(folder).model.config.eos_ids == eos_ids


@pytest.mark.parametrize("num_shards", [0, 1, 3])
@pytest.mark.parametrize("prefix", [True, False])
def test_gpt2_folder(tmp_path: Path, prefix: bool, num_shards: int) -> None:
    tensors = gpt2_tensors()
    save_folder(tmp_path, GPT2, with_prefix(tensors) if prefix else tensors, num_shards)
    assert_equal(weights(tmp_path), expected_gpt2(tensors))


@pytest.mark.parametrize("num_shards", [0, 3])
def test_llama_folder(tmp_path: Path, num_shards: int) -> None:
    tensors = llama_tensors()
    save_folder(tmp_path, LLAMA, tensors, num_shards)
    assert_equal(weights(tmp_path), expected_llama(tensors))


def test_gguf_file(tmp_path: Path) -> None:
    """Rows of q and k stay in llama.cpp's order, and the configuration says so."""
    tensors = llama_tensors()
    file = save_gguf(tmp_path / "m.gguf", LLAMA_GGUF, llama_gguf_tensors(tensors, 3, 1))
    assert load(file).model.config.rope_interleaved
    found, expected = weights(file), expected_llama(tensors)
    halves = {name: tensor.unflatten(0, (5, 3, 2)) for name, tensor in found.items() if "qkv" in name}
    for name, heads in halves.items():
        q_and_k = heads[:4].transpose(1, 2).flatten(0, 2)
        found[name] = torch.cat([q_and_k, found[name][24:]])
    assert_equal(found, expected)


def test_buffers_of_old_checkpoints_and_an_unused_head_are_skipped(tmp_path: Path) -> None:
    tensors = gpt2_tensors()
    extra = {"h.0.attn.bias": torch.ones(1, 1, 10, 10, dtype=torch.uint8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_folder(tmp_path / "gpt2", GPT2, with_prefix({**tensors, **extra}) | {"lm_head.weight": torch.zeros(31, 12)})
    assert_equal(weights(tmp_path / "gpt2"), expected_gpt2(tensors))
    llama = llama_tensors()
    buffers = (
        "layers.1.self_attn.rotary_emb.inv_freq",
        "layers.0.self_attn.rotary_emb.cos_cached",
        "rotary_emb.inv_freq",
    )
    old = {f"model.{name}": torch.ones(3) for name in buffers}
    save_folder(tmp_path / "llama", LLAMA, llama | old)
    assert_equal(weights(tmp_path / "llama"), expected_llama(llama))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."])
def test_what_training_wrapped_round_the_network_is_left_out_of_names(tmp_path: Path, wrapper: str) -> None:
    tensors = llama_tensors()
    save_folder(tmp_path, LLAMA, {wrapper + name: tensor for name, tensor in tensors.items()})
    assert_equal(weights(tmp_path), expected_llama(tensors))


def test_a_head_that_is_not_there_is_the_embedding_unless_the_configuration_denies_it(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["lm_head.weight"]
    save_folder(tmp_path, LLAMA, tensors)
    assert_equal(weights(tmp_path), expected_llama(tensors))
    save_folder(tmp_path, LLAMA | {"tie_word_embeddings": False}, tensors)
    with pytest.raises(ValueError, match=r"tensor lm_head\.weight is missing"):
        load(tmp_path)


def test_an_untied_head_is_honoured(tmp_path: Path) -> None:
    tensors = gpt2_tensors() | {"lm_head.weight": torch.randn(31, 12)}
    save_folder(tmp_path, GPT2 | {"tie_word_embeddings": False}, tensors)
    assert_equal(weights(tmp_path), expected_gpt2(tensors))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tmp_path: Path, stored: torch.dtype, dtype: str) -> None:
    tensors = random_tensors(llama_shapes(LLAMA), stored)
    save_folder(tmp_path, LLAMA, tensors)
    wanted = getattr(torch, dtype)
    loaded = load(tmp_path, dtype)
    assert loaded.dtype == wanted
    assert loaded.model.cos.dtype == loaded.model.sin.dtype == torch.float32
    assert_equal(weights(tmp_path, dtype), {name: t.to(wanted) for name, t in expected_llama(tensors).items()})


def test_tensors_at_odd_offsets(tmp_path: Path) -> None:
    """The format does not promise that numbers are aligned."""
    tensors = gpt2_tensors()
    save_folder(tmp_path, GPT2, tensors)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    raw_safetensors(file, content[8 : 8 + length] + b" ", content[8 + length :])
    assert_equal(weights(tmp_path), expected_gpt2(tensors))


def test_a_loaded_model_is_ready_to_decode(tmp_path: Path) -> None:
    loaded = load(save_folder(tmp_path, LLAMA, llama_tensors()))
    assert (loaded.name, loaded.is_dummy) == (str(tmp_path), False)
    assert loaded.tokenizer is None
    assert not loaded.model.training
    logits = loaded.model.loss(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 29)
    assert not logits.requires_grad


def test_a_model_without_tokenizer_files_has_no_tokenizer(tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, llama_tensors())
    with pytest.raises(ValueError, match="comes without a tokenizer"):
        load_tokenizer(tmp_path)


# Dummies


def test_dummy_models_have_the_real_shape_and_seeded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = LlamaConfig(
        vocab_size=50, context_size=16, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
        intermediate_dim=96,
    )  # fmt: skip
    monkeypatch.setitem(KNOWN_SHAPES, "tiny", tiny)
    loaded = load("dummy:tiny", "bfloat16")
    assert (loaded.name, loaded.is_dummy, loaded.tokenizer) == ("dummy:tiny", True, None)
    assert loaded.model.config == tiny
    first, second = weights("dummy:tiny", "bfloat16"), weights("dummy:tiny", "bfloat16")
    assert_equal(first, second)
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    assert first["embed_tokens.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    assert bool((first["norm.weight"] == 1).all())


def test_a_dummy_gpt2_takes_the_vocabulary_that_is_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpt2_vocabulary_path: Path
) -> None:
    tiny = GPT2Config(
        vocab_size=50257, context_size=8, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4,
        intermediate_dim=4,
    )  # fmt: skip
    monkeypatch.setitem(KNOWN_SHAPES, "gpt2", tiny)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert load("dummy:gpt2").tokenizer is None
    (tmp_path / "gpt2.tiktoken").symlink_to(gpt2_vocabulary_path)
    tokenizer = load("dummy:gpt2").tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("hello world") == [31373, 995]
    assert load_tokenizer("gpt2").encode("hello world") == [31373, 995]


# Arguments


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dummy:gpt3", {}, "unknown model 'dummy:gpt3': dummy models are dummy:gpt2"),
        ("dummy:gpt2", {"dtype": "int4"}, "dtype must be auto, float32, bfloat16, float16, not 'int4'"),
        ("dummy:gpt2", {"weights": "int4"}, "weights must be auto, file, dense, q8_0, q4_0 or q4_1, not 'int4'"),
        ("dummy:gpt2", {"device": "tpu"}, "device must be auto, cpu or cuda, not 'tpu'"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name, REFERENCE, **arguments)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ValueError, match=r"device is cuda, but this PyTorch .* sees no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cpu") == CPU


def test_auto_dtype_is_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert resolve_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
