"""A GGUF file as a Checkpoint: metadata becomes the configuration, tensors keep the file's names and row order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.gpt.loading.checkpoint import Checkpoint
from octavo.gpt.loading.gguf_parts import GGUFParts, open_gguf_parts
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.models.family import Family
from octavo.gpt.models.registry import FAMILIES
from octavo.gpt.quoting import one_line

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def open_gguf_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint and the file's metadata; the other parts of a split model are found by name.

    ValueError names the file, and the key or tensor at fault.
    """
    file = open_gguf_parts(path)
    name = file.metadata.get("general.architecture")
    if name not in tuple(FAMILIES):
        raise ValueError(
            f"{path}: architecture {one_line(str(name), 80)} is not supported (only {', '.join(FAMILIES)})"
        )
    family = FAMILIES[name]
    tensors = {name: (part, name) for name, part in file.owners.items() if name not in family.gguf_constants}
    return Checkpoint(file.path, _config(file, family), tensors, family.gguf_names), file.metadata


def _config(file: GGUFParts, family: Family) -> ModelConfig:
    """The network that the metadata and the presence of optional tensors describe."""
    config = family.from_gguf(ConfigReader(file.path, file.metadata, f"{family.name}."), file)
    vocabulary = ConfigReader(file.path, file.metadata, "tokenizer.ggml.")
    bos = vocabulary.ids("bos_token_id", config.vocab_size)
    ends = [token_id for key in END_KEYS for token_id in vocabulary.ids(key, config.vocab_size)]
    return replace(config, bos_id=bos[0] if bos else None, eos_ids=tuple(dict.fromkeys(ends)))
