"""A Hugging Face folder as a Checkpoint: config.json, and model.safetensors or its shards."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.gpt.loading.checkpoint import Checkpoint
from octavo.gpt.loading.files import is_there, read_json
from octavo.gpt.loading.quantised import NAME as QUANTISATION
from octavo.gpt.loading.quantised import scheme_of, widened
from octavo.gpt.loading.safetensors_file import open_safetensors
from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader, as_list
from octavo.gpt.models.family import Family
from octavo.gpt.models.registry import FAMILIES, by_architecture, by_model_type, family_of
from octavo.gpt.quoting import one_line, quoted

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TIED = "tie_word_embeddings"
OLD_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # a method's own file, and its name
WRAPPERS = r"^(module\.|base_model\.model\.)+|(?<![^.])_orig_mod\."  # what training wraps round a network
BUFFERS = r"(.*\.)?rotary\w*\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|(.*\.)?attn\.masked_bias"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_folder(folder: Path) -> Checkpoint:
    """ValueError or FileNotFoundError names the file, and the option or tensor at fault."""
    config, reader = read_config(folder), _reader(folder)
    scheme = scheme_of(reader)
    family, index_file = family_of(config), _index_file(folder)
    stored = _sharded(index_file) if index_file.name == INDEX else _whole(index_file)
    if TIED not in reader.table and not any(re.search(r"(^|\.)lm_head\.", name) for name in stored):
        config = replace(config, tied_embeddings=True)
    if scheme is not None:
        if family.hf_transposed:
            raise ValueError(f"{index_file}: {scheme.label} weights are not supported in a {family.name}")
        stored = widened(index_file, scheme, stored)
    tensors = canonical(index_file, config, family, stored)
    return Checkpoint(
        index_file, config, tensors, family.hf_names, family.hf_transposed,
        quantised=scheme and scheme.label, norm_offset=family.hf_norm_offset, grouped=family.hf_grouped,
    )  # fmt: skip


def read_config(folder: Path) -> ModelConfig:
    """The network that a Hugging Face folder describes; its end-of-text ids are also generation_config.json's."""
    reader, generation = _reader(folder), folder / "generation_config.json"
    family = _family(reader.path, reader.table)
    config = family.from_hf(reader)
    wishes = ConfigReader(generation, read_json(generation))
    bos = reader.ids("bos_token_id", config.vocab_size)
    ends = [token_id for each in (wishes, reader) for token_id in each.ids("eos_token_id", config.vocab_size)]
    return replace(config, bos_id=bos[0] if bos else None, eos_ids=tuple(dict.fromkeys(ends)))


def _reader(folder: Path) -> ConfigReader:
    """config.json, with what older tools wrote of the quantisation into a file of its own."""
    path = folder / "config.json"
    if not is_there(path):
        raise FileNotFoundError(f"{path} is missing (a GGUF model is named by its file)")
    table = read_json(path)
    for name, method in OLD_CONFIGS.items():
        if table.get(QUANTISATION) is None and is_there(folder / name):
            table[QUANTISATION] = {"quant_method": method, **read_json(folder / name)}
    return ConfigReader(path, table)


def _family(path: Path, table: dict[str, Any]) -> Family:
    """The family that all of `architectures` and `model_type` name."""
    named: list[Any] = []
    for architecture in as_list(table.get("architectures")):
        family = by_architecture(architecture)
        if family is None:
            raise ValueError(
                f"{path}: architecture {one_line(str(architecture), 80)} is not supported (only {', '.join(FAMILIES)})"
            )
        named.append(family.name)
    for model_type in as_list(table.get("model_type")):
        family = by_model_type(model_type)
        named.append(family and family.name)
    if not named or named[0] is None or any(name != named[0] for name in named):
        known = ", ".join(name for each in FAMILIES.values() for name in each.hf_types)
        raise ValueError(f"{path}: model_type {quoted(table.get('model_type'))} is not supported (only {known})")
    return FAMILIES[named[0]]


def _index_file(folder: Path) -> Path:
    for name in (WEIGHTS, INDEX):
        if is_there(folder / name):
            return folder / name
    for path in _listed(folder):
        if path.suffix in PICKLES:
            raise ValueError(f"{path}: pickle checkpoints can run any code and are not read; convert to safetensors")
    raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {INDEX} is there")


def _listed(folder: Path) -> list[Path]:
    """What is in the folder; nothing where it may not be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


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
            raise ValueError(
                f"{index}: tensor {one_line(tensor, 80)} is said to be in {quoted(name)}, "
                "which is no file of this folder"
            )
        if name not in shards:
            path = index.parent / name
            if not is_there(path):
                raise FileNotFoundError(f"{path}: this shard, named by {index.name}, is missing")
            shards[name] = open_safetensors(path)
        if tensor not in shards[name].tensors:
            raise ValueError(
                f"{shards[name].path}: tensor {one_line(tensor, 80)} is missing, though {index.name} says it is here"
            )
    for name, shard in shards.items():
        for tensor in shard.tensors:
            if weight_map.get(tensor) != name:
                raise ValueError(
                    f"{shard.path}: tensor {one_line(tensor, 80)} is not listed for this shard in {index.name}"
                )
    return {tensor: shards[name] for tensor, name in weight_map.items()}


def canonical(
    index_file: Path, config: ModelConfig, family: Family, stored: dict[str, TensorFile]
) -> dict[str, tuple[TensorFile, str]]:
    """The tensors the network needs, their names without the family's prefix; an unused head is left out."""
    tensors: dict[str, tuple[TensorFile, str]] = {}
    for full_name, file in stored.items():
        name = re.sub(WRAPPERS, "", full_name).removeprefix(family.hf_prefix)
        if re.fullmatch(rf"{BUFFERS}|{family.hf_buffers}", name) or (
            name == "lm_head.weight" and config.tied_embeddings
        ):
            continue
        if name in tensors:
            raise ValueError(f"{index_file}: tensor {one_line(name, 80)} is there twice, with and without its prefix")
        tensors[name] = (file, full_name)
    return tensors
