"""Model names -> files on disk: a path stands for itself, a name is fetched if need be."""

import importlib
import re
from pathlib import Path

from octavo.gpt.loading.fetch import GPT2_VOCABULARY, SMOLLM2, cache_dir, fetch, is_whole
from octavo.gpt.loading.files import is_folder, is_there
from octavo.gpt.loading.hf import PICKLES
from octavo.gpt.quoting import one_line, quoted

HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def resolve(name: str) -> Path:
    """The Hugging Face folder or GGUF file of a model: a path stands for itself, a name is fetched if need be."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # a user of that name, or a home, is not there
        raise FileNotFoundError(f"{quoted(name)}: no such home folder") from None
    if name and is_there(path):
        return _local(path)
    if name == "smollm2":
        return fetch(SMOLLM2)
    if name.startswith((".", "/", "~")) or path.suffix in (".gguf", ".safetensors", *PICKLES):
        raise FileNotFoundError(f"{one_line(name, 80)}: no such file or folder")
    if name in HUB_NAMES or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _snapshot(HUB_NAMES.get(name, name))
    known = ", ".join(("smollm2", *HUB_NAMES))
    raise ValueError(f"unknown model {quoted(name)}: give a folder, a .gguf file, {known}, owner/name or dummy:<shape>")


def gpt2_vocabulary() -> Path:
    """GPT-2's BPE as a `.tiktoken` file, fetched if missing."""
    return fetch(GPT2_VOCABULARY)


def cached_gpt2_vocabulary() -> Path | None:
    """The same, but only if it is there already."""
    path = cache_dir() / GPT2_VOCABULARY.filename
    return path if is_whole(path, GPT2_VOCABULARY) else None


def _local(path: Path) -> Path:
    if path.suffix in PICKLES and not is_folder(path):
        raise ValueError(f"{path}: pickle checkpoints can run any code and are not read; convert to safetensors")
    if not is_folder(path) and path.suffix != ".gguf":
        raise ValueError(f"{path}: a model is a folder with config.json and safetensors, or a .gguf file")
    return path


def _snapshot(repository: str) -> Path:
    """A model of the Hugging Face hub, in that library's own cache."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ValueError(
            f"{one_line(repository, 80)} is on the Hugging Face hub: pip install 'octavo[hub]' to fetch it"
        ) from None
    patterns = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.model.v*"]
    try:
        folder = hub.snapshot_download(repository, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the Hugging Face hub does not give {one_line(repository, 80)}: {one_line(reason, 80)}"
        ) from None
    return Path(folder)
