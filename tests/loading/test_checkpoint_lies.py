"""Checkpoints that lie: every missing, odd, extra or misplaced tensor is refused by name before memory is taken."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.gpt.loading.loader import LoadedModel, load_model
from octavo.kernels.ops import REFERENCE

from checkpoints import (
    GPT2,
    LLAMA,
    LLAMA_GGUF,
    gpt2_shapes,
    gpt2_tensors,
    llama_gguf_tensors,
    llama_tensors,
    raw_safetensors,
    save_folder,
    save_gguf,
)


def load(path: Path) -> LoadedModel:
    return load_model(path, REFERENCE, "float32", "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"h.1.mlp.c_fc.weight": None}, r"tensor h\.1\.mlp\.c_fc\.weight is missing"),
        ({"ln_f.bias": torch.ones(13)}, r"tensor ln_f\.bias is \[13\], the configuration asks for \[12\]"),
        (
            {"h.0.attn.c_attn.weight": torch.ones(36, 12)},
            r"tensor h\.0\.attn\.c_attn\.weight is \[36, 12\], the configuration asks for \[12, 36\]",
        ),
        ({"h.2.ln_1.weight": torch.ones(12)}, r"tensor h\.2\.ln_1\.weight has no place in a gpt2"),
        ({"wpe.weight": torch.ones(10, 12, dtype=torch.int64)}, r"tensor wpe\.weight is of type I64"),
        ({"transformer.wpe.weight": torch.ones(10, 12)}, r"tensor wpe\.weight is there twice"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    changed = {name: tensor for name, tensor in (gpt2_tensors() | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        load(save_folder(tmp_path, GPT2, changed))


def test_llama_parts_are_checked_one_by_one(tmp_path: Path) -> None:
    """k two rows too tall and v two too short would stack to the right height."""
    changes = {
        f"model.layers.0.self_attn.{part}_proj.weight": torch.ones(rows, 12) for part, rows in (("k", 8), ("v", 4))
    }
    with pytest.raises(ValueError, match=r"k_proj\.weight is \[8, 12\], the configuration asks for \[6, 12\]"):
        load(save_folder(tmp_path, LLAMA, llama_tensors() | changes))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layer": 900}, "900 layers, but only 28 tensors"),
        ({"n_layer": 10**9}, "num_layers must be at most 1000, not 1000000000"),
        ({"n_embd": 3 * 2**29, "n_inner": 8}, "head_dim must be at most 1024, not 536870912"),
        ({"n_embd": 3 * 2**29, "n_inner": 8, "n_head": 3 * 2**20}, "impossible sizes in the configuration"),
        ({"vocab_size": 2**31 - 1}, r"tensor wte\.weight is \[31, 12\], the configuration asks for \[2147483647, 12\]"),
    ],
)
def test_sizes_that_lie_take_no_memory(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(save_folder(tmp_path, GPT2 | sizes, gpt2_tensors()))


def test_a_gguf_tensor_of_the_wrong_shape_or_type(tmp_path: Path) -> None:
    tensors = llama_gguf_tensors(llama_tensors(), 3, 1)
    file = save_gguf(tmp_path / "m.gguf", LLAMA_GGUF, tensors | {"blk.1.attn_q.weight": torch.ones(18, 10)})
    with pytest.raises(
        ValueError, match=r"m\.gguf: tensor blk\.1\.attn_q\.weight is \[18, 10\], .* asks for \[18, 12\]"
    ):
        load(file)
    file = save_gguf(tmp_path / "m.gguf", LLAMA_GGUF, tensors | {"blk.0.ffn_gate_exps.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"m\.gguf: tensor blk\.0\.ffn_gate_exps\.weight has no place in a llama"):
        load(file)


GOOD_ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": GOOD_ENTRY | {"data_offsets": [0, 20]}}, 20, r"tensor w \[2, 2\] F32 needs 16 bytes and has 20"),
        ({"w": GOOD_ENTRY}, 15, "tensor w ends at byte 89, the file at byte 88"),
        ({"w": GOOD_ENTRY | {"data_offsets": [2**62, 2**62 + 16]}}, 16, "tensor w ends at byte"),
        ({"w": GOOD_ENTRY | {"data_offsets": [16, 0]}}, 16, "tensor w has an impossible shape or place"),
        ({"w": GOOD_ENTRY | {"shape": [-2, -2]}}, 16, "tensor w has an impossible shape or place"),
        ({"w": GOOD_ENTRY | {"shape": [2**40, 2**40]}}, 16, "tensor w .* needs"),
        ({"w": GOOD_ENTRY | {"shape": [2.0, 2]}}, 16, "tensor w has an impossible shape or place"),
        ({"w": {"dtype": "F32"}}, 16, "tensor w lacks a dtype, shape or data_offsets"),
        ({"w": 3}, 16, "tensor w lacks a dtype, shape or data_offsets"),
        ({"a": GOOD_ENTRY, "b": GOOD_ENTRY | {"data_offsets": [8, 24]}}, 24, "tensors a and b overlap"),
        (b'{"w": {}, "w": {}}', 0, "the header is not valid: w stands twice"),
        (b"{", 0, "the header is not valid"),
        (b"[]", 0, "the header is not a JSON object"),
    ],
)
def test_safetensors_that_lie(tmp_path: Path, header: Any, data: int, message: str) -> None:
    save_folder(tmp_path, GPT2, {})
    raw_safetensors(tmp_path / "model.safetensors", header, bytes(data))
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        load(tmp_path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    save_folder(tmp_path, GPT2, gpt2_tensors())
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            load(tmp_path)


def test_a_missing_shard_and_a_tensor_missing_from_its_shard(tmp_path: Path) -> None:
    save_folder(tmp_path, GPT2, gpt2_tensors(), num_shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    save_file({"h.0.attn.c_attn.weight": torch.ones(12, 36)}, shard)
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors: tensor .* is missing, though"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002\.safetensors: this shard"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 3, "..\\x.safetensors"]
)
def test_an_index_may_not_leave_its_folder(tmp_path: Path, name: Any) -> None:
    folder = save_folder(tmp_path / "model", GPT2, gpt2_tensors(), num_shards=1)
    save_file(gpt2_tensors(), tmp_path / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(gpt2_shapes(GPT2), name)}))
    with pytest.raises(ValueError, match=r"index\.json: tensor .* which is no file of this folder"):
        load(folder)


def test_an_index_must_list_what_its_shards_hold(tmp_path: Path) -> None:
    save_folder(tmp_path, GPT2, gpt2_tensors(), num_shards=1)
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    del table["weight_map"]["ln_f.bias"]
    index.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"tensor ln_f\.bias is not listed for this shard"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map is missing or empty"):
        load(tmp_path)


def test_pickle_checkpoints_are_refused_unread(tmp_path: Path) -> None:
    save_folder(tmp_path, GPT2, {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load(tmp_path)
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"anything")
    for path in (tmp_path, pickle):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickle checkpoints can run any code"):
            load(path)


HOSTILE = {"escape": "\x1b[2Ja", "line ends": "a\nb\u2028c\x85d", "direction": "\u202eabc", "length": "x" * 100_000}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["tensor", "architecture", "activation", "type", "gguf", "gguf key", "shard"])
def test_what_a_message_quotes_of_a_file_is_short_and_printable(tmp_path: Path, place: str, text: str) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    config = LLAMA | {"architecture": {"architectures": [text]}, "activation": {"hidden_act": text}}.get(place, {})
    path = save_folder(tmp_path, config, llama_tensors())
    if place in ("tensor", "type"):
        name, entry["dtype"] = (text, "F32") if place == "tensor" else ("lm_head.weight", text)
        raw_safetensors(tmp_path / "model.safetensors", {name: entry}, bytes(4))
    elif place == "shard":
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {text: text}}))
    elif place.startswith("gguf"):
        fields = {"general.architecture": text} if place == "gguf" else {}
        path = save_gguf(tmp_path / "m.gguf", LLAMA_GGUF | fields, llama_gguf_tensors(llama_tensors(), 3, 1))
        if place == "gguf key":
            changed = path.read_bytes().replace(b"llama.context_length", text.encode()[:20].ljust(20, b"\n"))
            path.write_bytes(changed.replace(b"llama.block_count", text.encode()[:17].ljust(17, b"\n")))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
        load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
