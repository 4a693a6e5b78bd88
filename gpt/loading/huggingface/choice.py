"""Which files of a repository a model, a tokenizer or an adapter is: its listing -> the names of the files to fetch.

GGUF files are chosen as llama.cpp and ollama choose them: by the quantisation in their names, in any case of letters.
"""

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from octavo.gpt.loading.gguf_parts import NAME as PART
from octavo.gpt.loading.hf import INDEX, PICKLES, WEIGHTS
from octavo.gpt.loading.huggingface.name import HubName
from octavo.gpt.quoting import one_line, quoted

DEFAULT_QUANTISATION = "Q4_K_M"
NOT_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # projectors of images, and statistics

VOCABULARIES = ("tokenizer.json", "vocab.json", "tekken*.json", "tokenizer*.model*", "mistral*.model*")
TOKENIZER_FILES = (
    *VOCABULARIES, "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
    "config.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
MODEL_FILES = (*TOKENIZER_FILES, "generation_config.json", "quantize_config.json", "quant_config.json", INDEX)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Wanted(Enum):
    """What of a repository is wanted: the files that are taken where they are there, a model's weights aside."""

    MODEL = MODEL_FILES
    TOKENIZER = TOKENIZER_FILES
    ADAPTER = ADAPTER_FILES


REQUIRED = {Wanted.MODEL: ("config.json",), Wanted.TOKENIZER: (), Wanted.ADAPTER: ADAPTER_FILES}


def is_folder_model(listing: Sequence[str], name: HubName, wanted: Wanted) -> bool:
    """Whether what is wanted is in config.json and its companions, and not in a GGUF file."""
    if wanted is Wanted.ADAPTER:
        return True
    if name.quantisation or name.file:
        return False
    signs = VOCABULARIES if wanted is Wanted.TOKENIZER else (WEIGHTS, INDEX)
    return bool(_matching(listing, signs)) or not _models(listing)


def small_files(listing: Sequence[str], wanted: Wanted, label: str) -> list[str]:
    """All that is fetched but a model's weights. ValueError names what is missing."""
    if wanted is Wanted.MODEL and WEIGHTS not in listing and INDEX not in listing:
        raise _without(listing, f"{WEIGHTS} or {INDEX} or a GGUF file", label)
    for file in REQUIRED[wanted]:
        if file not in listing:
            raise _without(listing, file, label)
    if wanted is Wanted.TOKENIZER and not _matching(listing, VOCABULARIES):
        raise ValueError(f"{label}: no tokenizer is there")
    return _matching(listing, wanted.value)


def weight_files(listing: Sequence[str], weight_map: Any, label: str) -> list[str]:
    """The safetensors files: the whole one, else the shards that the index names. ValueError names what is missing."""
    if WEIGHTS in listing:
        return [WEIGHTS]
    named = weight_map.values() if isinstance(weight_map, dict) else ()
    shards = sorted({shard for shard in named if isinstance(shard, str)})  # other faults are told by who reads it
    for shard in shards:
        if shard not in listing:
            raise ValueError(f"{label}: {one_line(shard, 80)}, named by {INDEX}, is missing")
    return shards


def gguf_files(listing: Sequence[str], name: HubName, label: str) -> list[str]:
    """The GGUF file that a name means, all parts of a split one in their order. ValueError lists what there is."""
    models = _models(listing)
    if not models:
        raise ValueError(f"{label}: no GGUF file is there (a quantisation or a file is chosen among such)")
    if name.file:
        chosen = [first for first, parts in models.items() if name.file in parts]
    elif name.quantisation is None and len(models) == 1:
        chosen = list(models)
    else:
        chosen = [first for first in models if _has(first, name.quantisation or DEFAULT_QUANTISATION)]
    if len(chosen) != 1:
        raise ValueError(f"{label}: {_complaint(name, len(chosen))} {_names(chosen or models)}")
    parts = models[chosen[0]]
    if match := PART.fullmatch(chosen[0]):
        for number in range(1, int(match[3]) + 1):
            part = f"{match[1]}-{number:05}-of-{match[3]}{match[4]}"
            if part not in parts:
                raise ValueError(f"{label}: {one_line(part, 80)}, a part of the model, is missing")
    return parts


def _matching(listing: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The files of those names; a * stands for no slash."""
    return [
        file
        for file in listing
        if any(fnmatchcase(file, each) and file.count("/") == each.count("/") for each in patterns)
    ]


def _without(listing: Iterable[str], file: str, label: str) -> ValueError:
    pickle = next((each for each in listing if PurePosixPath(each).suffix in PICKLES), None)
    reason = f"; {one_line(pickle, 80)} is a pickle file, which can run any code and is not read" if pickle else ""
    return ValueError(f"{label}: no {file} is there{reason}")


def _models(listing: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF models by their first files: each with all its parts."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(listing):
        if not file.endswith(".gguf") or NOT_MODELS.search(file):
            continue
        match = PART.fullmatch(file)
        found.setdefault((match[1], match[3]) if match else (file, ""), []).append(file)
    return {parts[0]: parts for parts in found.values()}


def _has(file: str, quantisation: str) -> bool:
    """Whether the name holds the quantisation as a word of its own: Q4_K is not in Q4_K_M."""
    word = rf"(?<![a-z0-9]){re.escape(quantisation)}(?=[-./])"
    return re.search(word, file, re.IGNORECASE) is not None


def _complaint(name: HubName, number: int) -> str:
    if name.file:
        return f"{one_line(name.file, 80)} is not there, but"
    if name.quantisation is None:
        return f"several GGUF files, {'none' if not number else 'more than one'} of {DEFAULT_QUANTISATION}: name one of"
    if number:
        return f"more than one file of quantisation {quoted(name.quantisation)}: name one of"
    return f"no file of quantisation {quoted(name.quantisation)}, but"


def _names(files: Iterable[str]) -> str:
    return one_line(", ".join(files), 600)
