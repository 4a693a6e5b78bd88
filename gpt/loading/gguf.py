"""A GGUF file as a Checkpoint: metadata becomes the configuration, tensors keep the file's names and row order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.gpt.loading.checkpoint import Checkpoint
from octavo.gpt.loading.gguf_parts import GGUFParts, open_gguf_parts
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.family import Family, Names
from octavo.gpt.models.names import GGUF_FUSED, GGUF_QKV, QKV
from octavo.gpt.models.registry import FAMILIES, by_gguf_architecture
from octavo.gpt.quoting import one_line

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def open_gguf_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint and the file's metadata; the other parts of a split model are found by name.

    ValueError names the file, and the key or tensor at fault.
    """
    file = open_gguf_parts(path)
    name = file.metadata.get("general.architecture")
    family = by_gguf_architecture(name) if isinstance(name, str) else None
    if family is None or family.from_gguf is None:
        known = ", ".join(each for family in FAMILIES.values() for each in family.gguf_types)
        raise ValueError(f"{path}: architecture {one_line(str(name), 80)} is not supported (only {known})")
    tensors = {tensor: (part, tensor) for tensor, part in file.owners.items() if tensor not in family.gguf_constants}
    config = _config(file, family.from_gguf, f"{name}.")
    return Checkpoint(file.path, config, tensors, _names(family, file), keeps_blocks=True), file.metadata


def _names(family: Family, file: GGUFParts) -> Names:
    """The family's names; q, k and v are one tensor or three, as the file has them: llama.cpp reads either."""
    if QKV not in family.gguf_names:
        return family.gguf_names
    return {**family.gguf_names, QKV: GGUF_FUSED if f"{GGUF_FUSED[0]}.weight".format(0) in file.tensors else GGUF_QKV}


def _config(
    file: GGUFParts, from_gguf: Callable[[ConfigReader, TensorSource], ModelConfig], prefix: str
) -> ModelConfig:
    """The network that the metadata and the presence of optional tensors describe."""
    config = from_gguf(ConfigReader(file.path, file.metadata, prefix), file)
    vocabulary = ConfigReader(file.path, file.metadata, "tokenizer.ggml.")
    bos = vocabulary.ids("bos_token_id", config.vocab_size)
    ends = [token_id for key in END_KEYS for token_id in vocabulary.ids(key, config.vocab_size)]
    return replace(config, bos_id=bos[0] if bos else None, eos_ids=tuple(dict.fromkeys(ends)))
