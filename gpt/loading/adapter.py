"""A LoRA adapter in PEFT's format -> an Adapter: a folder with adapter_config.json and adapter_model.safetensors.

Only adapters of the attention's and the feed-forward's projections are taken. Whatever else an adapter may hold or ask
for is refused by name, before any tensor is read. Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from octavo.gpt.loading import hub
from octavo.gpt.loading.checkpoint import stored_parts
from octavo.gpt.loading.files import is_there, read_json
from octavo.gpt.loading.huggingface.choice import Wanted
from octavo.gpt.loading.safetensors_file import open_safetensors
from octavo.gpt.loading.tensor_file import TensorFile
from octavo.gpt.models.base import Linear, Model
from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.models.family import Family
from octavo.gpt.models.lora import Adapter, Update
from octavo.gpt.models.registry import empty_network, family_of
from octavo.gpt.models.rope import interleave_rows
from octavo.gpt.quoting import one_line, quoted

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
NAME = re.compile(r"\^?[\w.-]+")

READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"}
NO_MATTER = {  # options of training, and of what the tensors say themselves
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out",
    "megatron_core", "loftq_config", "eva_config", "qalora_group_size", "ensure_weight_tying", "runtime_config",
}  # fmt: skip
OFF: tuple[Any, ...] = (None, False, {}, [])
INITIAL = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the model's own weights alone


class Target(NamedTuple):
    """A projection that an adapter may change: rows of a weight of our network."""

    module: str
    first_row: int
    num_rows: int
    in_features: int
    head_dim: int  # of rotary pairs that lie apart in the adapter and side by side in the network; else 0


class _Pair(NamedTuple):
    """The two tensors of one projection, by their names in the file."""

    module: str  # the projection's name in the file
    target: Target
    a: str
    b: str
    rank: int


def load_adapter(folder: str | Path, model: Model) -> Adapter:
    """The adapter of that folder, or of that name of the hub, for a loaded model, in its dtype and on its device.

    ValueError or FileNotFoundError names the file, and the option or tensor that is missing, odd or not supported.
    """
    folder = hub.resolve(str(folder), Wanted.ADAPTER)
    reader = _read_config(folder)
    file = open_safetensors(_weights_file(folder))
    pairs = _pairs(file, _targets(model), family_of(model.config))
    _check_ranks(reader, file, pairs)
    scales = [_scale(reader, pair) for pair in pairs]
    updates: dict[str, list[Update]] = {}
    for pair, scale in zip(pairs, scales, strict=True):
        updates.setdefault(pair.target.module, []).append(_update(file, pair, scale, model.embedding.like))
    return Adapter({module: tuple(parts) for module, parts in updates.items()})


def _read_config(folder: Path) -> ConfigReader:
    path = folder / CONFIG
    if not is_there(path):
        raise FileNotFoundError(f"{one_line(str(path), 300)} is missing (an adapter is a folder in PEFT's format)")
    reader = ConfigReader(path, read_json(path))
    reader.require_one_of("peft_type", "LORA")
    reader.require_one_of("bias", "none")
    reader.require_one_of("init_lora_weights", *INITIAL)
    for name, value in reader.table.items():
        if name not in READ | NO_MATTER and value not in OFF:
            raise ValueError(f"{path}: {one_line(name, 80)} = {quoted(value)} is not supported")
    reader.count("r")
    return reader


def _weights_file(folder: Path) -> Path:
    if not is_there(folder / WEIGHTS) and is_there(folder / PICKLE):
        raise ValueError(f"{folder / PICKLE}: pickle files can run any code and are not read; convert to safetensors")
    return folder / WEIGHTS


def _targets(model: Model) -> dict[str, Target]:
    """The projections of a network by their names in Hugging Face's, the head left out."""
    config, family = model.config, family_of(model.config)
    network = empty_network(config)
    found: dict[str, Target] = {}
    for module_name, module in network.named_modules():
        if not isinstance(module, Linear) or module is network.lm_head:
            continue
        for part in stored_parts(network, f"{module_name}.weight", family.hf_names):
            turned = getattr(config, "rope_interleaved", False) and part.module in family.rotary
            found[part.name.removesuffix(".weight")] = Target(
                module_name, part.first_row, part.num_rows, module.weight.shape[1], config.head_dim if turned else 0
            )
    return found


def _pairs(file: TensorFile, targets: Mapping[str, Target], family: Family) -> list[_Pair]:
    """The tensors of each projection, whose shapes fit it; ValueError names one that does not, or stands alone."""
    found: dict[str, dict[str, str]] = {}
    for tensor in file.tensors:
        match = TENSOR.fullmatch(tensor)
        if match is None or match[1].removeprefix(family.hf_prefix) not in targets:
            raise ValueError(
                f"{file.path}: tensor {one_line(tensor, 80)} changes no attention or feed-forward projection "
                f"of a {family.name} of this configuration"
            )
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise ValueError(f"{file.path}: no LoRA tensors")
    pairs = [_pair(file, name, sides, targets[name.removeprefix(family.hf_prefix)]) for name, sides in found.items()]
    seen: dict[Target, _Pair] = {}
    for pair in pairs:
        if seen.setdefault(pair.target, pair) is not pair:
            a, b = (one_line(each.a, 80) for each in (seen[pair.target], pair))
            raise ValueError(f"{file.path}: tensors {a} and {b} are of one projection")
    return pairs


def _pair(file: TensorFile, module: str, sides: Mapping[str, str], target: Target) -> _Pair:
    for side in "AB":
        if side not in sides:
            (there,) = sides.values()
            raise ValueError(f"{file.path}: tensor {one_line(there, 80)} has no lora_{side} beside it")
    a, b = (file.tensors[sides[side]] for side in "AB")
    rank = a.shape[0] if a.shape else 0
    for name, info, wanted in ((sides["A"], a, (rank, target.in_features)), (sides["B"], b, (target.num_rows, rank))):
        if info.shape != wanted or rank < 1:
            raise ValueError(
                f"{file.path}: tensor {one_line(name, 80)} is {list(info.shape)}, the model asks for {list(wanted)}"
            )
        if not file.reads(info.dtype_name):
            raise file.unreadable(name)
    return _Pair(module, target, sides["A"], sides["B"], rank)


def _check_ranks(reader: ConfigReader, file: TensorFile, pairs: Iterable[_Pair]) -> None:
    """A rank that is not the configuration's own is one of its rank_pattern: the tensors say which."""
    rank = reader.count("r")
    for pair in pairs:
        if pair.rank != rank and not reader.get("rank_pattern"):
            raise ValueError(
                f"{file.path}: tensor {one_line(pair.a, 80)} has rank {pair.rank}, {CONFIG} says r = {rank}"
            )


def _scale(reader: ConfigReader, pair: _Pair) -> float:
    """alpha over the rank or its root; alpha is that of the first pattern that fits the projection's name."""
    patterns = reader.get("alpha_pattern", {})
    if not isinstance(patterns, dict):
        raise ValueError(f"{reader.path}: alpha_pattern must be an object, not {quoted(patterns)}")
    own = next((pattern for pattern in patterns if _fits(reader, pattern, pair.module)), None)
    alpha = reader.number("lora_alpha", 8) if own is None else ConfigReader(reader.path, patterns).number(own)
    return alpha / (pair.rank**0.5 if reader.flag("use_rslora", False) else pair.rank)


def _fits(reader: ConfigReader, pattern: str, module: str) -> bool:
    """Whether a pattern is the name's end, or with ^ all of it. PEFT takes any regular expression."""
    plain = pattern.replace("\\.", ".")
    if not NAME.fullmatch(plain):
        raise ValueError(f"{reader.path}: alpha_pattern {quoted(pattern)} is not supported (only names of modules)")
    return module == plain.removeprefix("^") or module.endswith(f".{plain}")


def _update(file: TensorFile, pair: _Pair, scale: float, like: Tensor) -> Update:
    """Both sides like the network's own tensor, rows in the network's order."""
    up = file.read(pair.b).float() * scale
    if pair.target.head_dim:
        up = interleave_rows(up, pair.target.head_dim)
    down, up = (side.to(like.device, like.dtype, copy=True).contiguous() for side in (file.read(pair.a), up))
    return Update(down, up, pair.target.first_row)
