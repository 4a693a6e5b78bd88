"""A name of the hub -> the folder or GGUF file in the cache of huggingface_hub, with what is needed of it and no more.

A model's configuration is fetched and read before its weights: one that is not supported is refused at once.
"""

from pathlib import Path

from octavo.gpt.loading.files import read_json
from octavo.gpt.loading.hf import INDEX, read_config
from octavo.gpt.loading.huggingface.choice import Wanted, gguf_files, is_folder_model, small_files, weight_files
from octavo.gpt.loading.huggingface.name import HubName
from octavo.gpt.loading.huggingface.repository import open_repository


def download(name: HubName, wanted: Wanted) -> Path:
    """The folder, or the first GGUF file; ValueError or FileNotFoundError says in one line what is wrong."""
    repository = open_repository(name)
    if not is_folder_model(repository.listing, name, wanted):
        files = gguf_files(repository.listing, name, repository.label)
        return repository.fetch(files[:1] if wanted is Wanted.TOKENIZER else files) / files[0]
    small = small_files(repository.listing, wanted, repository.label)
    folder = repository.fetch(small)
    if wanted is not Wanted.MODEL:
        return folder
    read_config(folder)
    weights = weight_files(repository.listing, read_json(folder / INDEX).get("weight_map"), repository.label)
    return repository.fetch([*small, *weights])
