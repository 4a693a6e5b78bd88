"""A Hugging Face folder as a Checkpoint: config.json, and model.safetensors or its shards."""

import re
from pathlib import Path
from typing import Any

from octavo.gpt.loading.checkpoint import Checkpoint, Names
from octavo.gpt.loading.hf_config import read_config, read_json
from octavo.gpt.loading.safetensors_file import open_safetensors
from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.config import ModelConfig

NAMES: dict[str, Names] = {  # where ours differ from the checkpoint's
    "gpt2": {},
    "llama": {
        "layers.{}.self_attn.qkv_proj": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{}.mlp.gate_up_proj": ("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"),
    },
}

CONV1D = ("h.{}.attn.c_attn", "h.{}.attn.c_proj", "h.{}.mlp.c_fc", "h.{}.mlp.c_proj")

PREFIX = {"gpt2": "transformer.", "llama": "model."}

# Tensors that old checkpoints carry and no network needs: causal masks, and rotary frequencies.
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_folder(folder: Path) -> Checkpoint:
    """ValueError or FileNotFoundError names the file, and the option or tensor at fault."""
    config = read_config(folder)
    listing = _listing(folder)
    stored = _sharded(listing) if listing.name == INDEX else _whole(listing)
    tensors = _canonical(listing, config, stored)
    transposed = CONV1D if config.family == "gpt2" else ()
    return Checkpoint(listing, config, tensors, NAMES[config.family], transposed)


def _listing(folder: Path) -> Path:
    for name in (WEIGHTS, INDEX):
        if (folder / name).is_file():
            return folder / name
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES:
            raise ValueError(f"{path}: pickle checkpoints can run any code and are not read; convert to safetensors")
    raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there")


def _whole(path: Path) -> dict[str, TensorFile]:
    file = open_safetensors(path)
    return dict.fromkeys(file.tensors, file)


def _sharded(index: Path) -> dict[str, TensorFile]:
    """The shard of every tensor, each named by the index and present in its shard, and none beside them."""
    weight_map: Any = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is missing or empty")
    shards: dict[str, TensorFile] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.\- ]+\.safetensors", name):
            raise ValueError(f"{index}: tensor {tensor} is said to be in {name!r}, which is no file of this folder")
        if name not in shards:
            path = index.parent / name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: this shard, named by {index.name}, is missing")
            shards[name] = open_safetensors(path)
        if tensor not in shards[name].tensors:
            raise ValueError(f"{shards[name].path}: tensor {tensor} is missing, though {index.name} says it is here")
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if weight_map.get(tensor) != name:
                raise ValueError(f"{shard.path}: tensor {tensor} is not listed for this shard in {index.name}")
    return {tensor: shards[name] for tensor, name in weight_map.items()}


def _canonical(listing: Path, config: ModelConfig, stored: dict[str, TensorFile]) -> dict[str, tuple[TensorFile, str]]:
    """The tensors the network needs, their names without the family's prefix; an unused head is left out."""
    tensors: dict[str, tuple[TensorFile, str]] = {}
    for full_name, file in stored.items():
        name = full_name.removeprefix(PREFIX[config.family])
        if BUFFERS.fullmatch(name) or (name == "lm_head.weight" and config.tied_head):
            continue
        if name in tensors:
            raise ValueError(f"{listing}: tensor {name} is there twice, with and without its prefix")
        tensors[name] = (file, full_name)
    return tensors
