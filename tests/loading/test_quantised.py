"""Quantised checkpoints: each layout, packed here as its format documents it, is widened to the weights it means."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.gpt.loading.loader import load_model
from octavo.kernels.ops import REFERENCE

from checkpoints import LLAMA, llama_shapes, llama_tensors, random_tensors, save_folder

CONFIG = LLAMA | {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
}  # fmt: skip
Made = tuple[dict[str, Tensor], Tensor]  # the leaves of a module, and the dense weight they mean


def draw(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape, dtype=torch.int32)


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape) * 0.02 + 0.001).to(dtype)


def pack(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Unsigned numbers `[rows, n]`, side by side in int32 words: the i-th of a word is the order[i]-th of the row's."""
    per_word = 32 // bits
    places = order or tuple(range(per_word))
    padded = torch.nn.functional.pad(numbers.long(), (0, -numbers.shape[1] % per_word)).view(len(numbers), -1, per_word)
    words = sum(padded[:, :, column] << (bits * place) for place, column in enumerate(places))
    assert isinstance(words, Tensor)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def gptq(out: int, width: int, bits: int = 4, group: int = 32, version: int = 1, shuffled: bool = False) -> Made:
    numbers, size = draw(width, out, below=2**bits), width if group == -1 else group
    num_groups = -(-width // size)
    zeros, scale = draw(num_groups, out, below=2**bits - 1) + 1, scales(num_groups, out)
    group_of = torch.arange(width) // size
    if shuffled:
        group_of = group_of[torch.randperm(width)]
    dense = (numbers - zeros[group_of]).double() * scale[group_of].double()
    leaves = {
        "qweight": pack(numbers.T, bits).T, "qzeros": pack(zeros - (2 - version), bits), "scales": scale,
        "g_idx": group_of.int(), "bias": torch.zeros(out),
    }  # fmt: skip
    return leaves, dense.T


def awq(out: int, width: int, group: int = 32) -> Made:
    numbers, zeros = draw(width, out, below=16), draw(width // group, out, below=16)
    scale, group_of, order = scales(width // group, out), torch.arange(width) // group, (0, 2, 4, 6, 1, 3, 5, 7)
    dense = (numbers - zeros[group_of]).double() * scale[group_of].double()
    return {"qweight": pack(numbers, 4, order), "qzeros": pack(zeros, 4, order), "scales": scale}, dense.T


def packed(
    out: int, width: int, bits: int = 4, group: int | None = 32, symmetric: bool = True, shuffled: bool = False
) -> Made:
    numbers, size = draw(out, width, below=2**bits), group or width
    scale, group_of = scales(out, width // size, dtype=torch.bfloat16), torch.arange(width) // size
    leaves = {"weight_packed": pack(numbers, bits), "weight_scale": scale, "weight_shape": torch.tensor([out, width])}
    zeros = torch.full((out, width // size), 2 ** (bits - 1))
    if not symmetric:
        zeros = draw(out, width // size, below=2**bits)
        leaves["weight_zero_point"] = pack(zeros.T, bits).T
    if shuffled:
        leaves["weight_g_idx"] = group_of = group_of[torch.randperm(width)]
    return leaves, (numbers - zeros[:, group_of]).double() * scale.double()[:, group_of]


def scaled(
    out: int, width: int, scale: Tensor, leaf: str = "weight_scale", block: tuple[int, int] = (1, 1),
    dtype: torch.dtype = torch.float8_e4m3fn, zeros: Tensor | None = None,
) -> Made:  # fmt: skip
    numbers = torch.randn(out, width).mul(40).to(dtype)
    spread = scale.double().view(scale.shape if scale.dim() == 2 else (-1, 1))
    spread = spread.repeat_interleave(block[0], 0)[:out].repeat_interleave(block[1], 1)[:, :width]
    leaves = {"weight": numbers, leaf: scale, "input_scale": torch.ones(1)}
    if zeros is None:
        return leaves, numbers.double() * spread
    return {**leaves, "weight_zero_point": zeros}, (numbers.double() - zeros.double()) * spread


def compressed(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


CASES: dict[str, tuple[dict[str, Any], Callable[[int, int], Made]]] = {
    "GPTQ 4-bit": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq),
    "GPTQ 8-bit by row": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1}, lambda out, width: gptq(out, width, 8, -1)
    ),
    "GPTQ act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"},
        lambda out, width: gptq(out, width, version=2, shuffled=True),
    ),
    "AWQ": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq),
    "W4A16 by group": (compressed(num_bits=4, strategy="group", group_size=32), packed),
    "W4A16 asymmetric act-order": (
        compressed(num_bits=4, strategy="group", symmetric=False, actorder="group"),
        lambda out, width: packed(out, width, symmetric=False, shuffled=True),
    ),
    "W8A16 by channel": (
        compressed(num_bits=8, strategy="channel"), lambda out, width: packed(out, width, 8, None)
    ),
    "int8 by channel": (
        compressed(num_bits=8, strategy="channel", symmetric=False) | {"format": "int-quantized"},
        lambda out, width: scaled(
            out, width, scales(out, 1), block=(1, width), dtype=torch.int8, zeros=draw(out, 1, below=9).to(torch.int8)
        ),
    ),
    "FP8 by channel": (
        compressed(num_bits=8, type="float", strategy="channel") | {"format": "float-quantized"},
        lambda out, width: scaled(out, width, scales(out, 1, dtype=torch.bfloat16), block=(1, width)),
    ),
    "FP8 by block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 40]},
        lambda out, width: scaled(
            out, width, scales(-(-out // 48), -(-width // 40), dtype=torch.float32), "weight_scale_inv", (48, 40)
        ),
    ),
    "FP8 by tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda out, width: scaled(out, width, scales(1, dtype=torch.float32)[0], block=(out, width)),
    ),
}  # fmt: skip


def made_folder(folder: Path, case: str, change: Callable[[dict[str, Tensor]], None] = lambda leaves: None) -> Any:
    """A checkpoint whose projections are stored so, and the dense weights they mean; `change` spoils the first one."""
    config, make = CASES[case]
    torch.manual_seed(0)
    tensors, dense = random_tensors(llama_shapes(CONFIG)), {}
    for name, shape in llama_shapes(CONFIG).items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            del tensors[name]
            leaves, dense[module.removeprefix("model.")] = make(*shape)
            if len(dense) == 1:
                change(leaves)
            tensors |= {f"{module}.{leaf}": tensor.contiguous() for leaf, tensor in leaves.items()}
    return save_folder(folder, {**CONFIG, "quantization_config": config}, tensors), dense


def projections(folder: Path, dtype: str) -> Mapping[str, Tensor]:
    """The weights as they were stored: apart, not stacked."""
    with pytest.warns(UserWarning, match=f"weights are widened to {dtype}, as are all activations"):
        model: Any = load_model(folder, REFERENCE, dtype, "cpu").model
    found = {}
    for i, layer in enumerate(model.layers):
        for names, linear in (
            (("q_proj", "k_proj", "v_proj"), layer.self_attn.qkv_proj), (("o_proj",), layer.self_attn.o_proj),
        ):  # fmt: skip
            parts = linear.weight.split(linear.part_rows)
            found |= {f"layers.{i}.self_attn.{name}": part for name, part in zip(names, parts, strict=True)}
        parts = layer.mlp.gate_up_proj.weight.split(layer.mlp.gate_up_proj.part_rows)
        found |= {f"layers.{i}.mlp.{name}_proj": part for name, part in zip(("gate", "up"), parts, strict=True)}
        found[f"layers.{i}.mlp.down_proj"] = layer.mlp.down_proj.weight
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_what_the_layout_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, dtype: str
) -> None:
    monkeypatch.setattr("octavo.gpt.loading.loader.CHUNK", 333)  # pieces that begin and end within a word
    folder, dense = made_folder(tmp_path, case)
    found = projections(folder, dtype)
    assert found.keys() == dense.keys()
    for name, weight in found.items():
        assert torch.equal(weight, dense[name].float().to(weight.dtype)), name


def test_an_older_tool_wrote_the_scheme_into_a_file_of_its_own(tmp_path: Path) -> None:
    folder, dense = made_folder(tmp_path, "AWQ")
    save_config(folder, CONFIG)
    save_config(folder, {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}, "quant_config.json")
    name = "layers.1.mlp.down_proj"
    assert torch.equal(projections(folder, "float32")[name], dense[name].float())


def save_config(folder: Path, table: Mapping[str, Any], name: str = "config.json") -> None:
    (folder / name).write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method 'bitsandbytes' is not supported"),
        ({"quant_method": None}, "quant_method None is not supported"),
        ({"quant_method": "gptq", "bits": 3}, r"bits = 3 is not supported \(only 4, 8, 2\)"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic gives modules other"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size must be a positive integer, not 0"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version = 'gemv' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two positive integers, not \[128\]"),
        (compressed(num_bits=4) | {"format": "nvfp4-pack-quantized"}, "format = 'nvfp4-pack-quantized'"),
        (compressed(num_bits=4) | {"config_groups": {}}, "config_groups must be an object that is not empty"),
        (compressed(num_bits=4, type="float"), "num_bits = 4 is not supported"),
        (compressed(num_bits=8) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        (
            compressed(num_bits=8)
            | {"config_groups": {"a": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}}},
            r"config_groups.a.input_activations are integers \(W8A8\), which is not supported",
        ),
        ([], r"quantization_config must be an object, not \[\]"),
    ],
)
def test_schemes_that_are_not_read_are_refused_by_name(tmp_path: Path, config: Any, message: str) -> None:
    save_folder(tmp_path, {**LLAMA, "quantization_config": config}, llama_tensors())
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path, REFERENCE, "float32", "cpu")


def without(leaf: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda leaves: leaves.pop(leaf) is None or None


def put(leaf: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda leaves: leaves.update({leaf: tensor})


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("GPTQ 4-bit", without("scales"), "self_attn.q_proj cannot be widened: scales is missing"),
        ("GPTQ 4-bit", put("scales", scales(1, 64)), r"scales is \[1, 64\], qweight asks for \[2, 64\]"),
        ("GPTQ 4-bit", put("qzeros", torch.zeros(2, 8)), "qzeros is of type float32, not int32"),
        ("GPTQ 4-bit", put("g_idx", torch.full((64,), 2)), "q_proj.weight cannot be widened: g_idx names a group"),
        ("GPTQ 4-bit", put("qweight", draw(8, below=9)), "qweight has 1 dimensions, not 2"),
        ("GPTQ 4-bit", put("bias", torch.ones(64)), "bias has no place in a llama of this configuration"),
        ("GPTQ 4-bit", put("weight", torch.ones(64, 64)), "q_proj.weight is there twice, quantised and not"),
        ("AWQ", put("qweight", draw(64, 7, below=9)), r"is \[2, 8\], qweight asks for \[2, 7\]"),
        ("W4A16 by group", put("weight_shape", torch.tensor([64, 99])), "weight_packed has 8 words a row"),
        ("W4A16 by group", put("weight_shape", torch.tensor([64])), "weight_shape must hold the two sizes"),
        ("W4A16 by group", put("weight_shape", torch.tensor([63, 64])), r"weight_packed is \[64, 8\]"),
        ("FP8 by block", put("weight_scale_inv", torch.ones(2, 3)), r"is \[2, 3\], weight asks for \[2, 2\]"),
        ("FP8 by channel", put("weight_scale", torch.ones(3, 1, 1)), "weight_scale must have at most two dimensions"),
        ("FP8 by channel", put("weight_scale", torch.ones(0)), "weight_scale is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weights are widened")
def test_tensors_that_do_not_fit_each_other_are_refused_by_name(
    tmp_path: Path, case: str, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    folder, _ = made_folder(tmp_path, case, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder, REFERENCE, "float32", "cpu")
