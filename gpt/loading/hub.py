"""Model names -> files on disk: a path stands for itself, a name is fetched if need be."""

from pathlib import Path
from typing import Any

from octavo.gpt.loading.fetch import GPT2_VOCABULARY, SMOLLM2, cache_dir, fetch, is_whole
from octavo.gpt.loading.files import is_folder, is_there
from octavo.gpt.loading.hf import PICKLES
from octavo.gpt.loading.huggingface.choice import Wanted
from octavo.gpt.loading.huggingface.name import ALIASES, is_like_path, parse
from octavo.gpt.quoting import one_line, quoted

KNOWN = "give a folder, a .gguf file, {}, owner/name or dummy:<shape>".format(", ".join(("smollm2", *ALIASES)))
UNKNOWN = {
    Wanted.MODEL: f"unknown model {{}}: {KNOWN}",
    Wanted.TOKENIZER: f"unknown model {{}}: {KNOWN}",
    Wanted.ADAPTER: "unknown adapter {}: give a folder in PEFT's format or owner/name of the hub",
}


def resolve(name: str, wanted: Wanted = Wanted.MODEL) -> Path:
    """The Hugging Face folder or GGUF file of a model: a path stands for itself, a name is fetched if need be.

    Names of the hub are those of `huggingface.name.parse`; of them only the files are fetched that are wanted.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # a user of that name, or a home, is not there
        raise FileNotFoundError(f"{quoted(name)}: no such home folder") from None
    if name and is_there(path):
        return path if wanted is Wanted.ADAPTER else _local(path)
    if name == "smollm2" and wanted is not Wanted.ADAPTER:
        return fetch(SMOLLM2)
    if is_like_path(name):
        raise FileNotFoundError(f"{one_line(name, 80)}: no such file or folder")
    if (hub_name := parse(name)) is None:
        raise ValueError(UNKNOWN[wanted].format(quoted(name)))
    from octavo.gpt.loading.huggingface.download import download  # it imports the hub's library, which takes a moment

    return download(hub_name, wanted)


def at_revisions(
    model: str | Path, tokenizer: str | Path | None, revision: str | None, tokenizer_revision: str | None
) -> tuple[str | Path, str | Path | None]:
    """The names of a model and its tokenizer, each with the branch, tag or commit that vLLM says apart from the name.

    tokenizer_revision is of the model's own repository where tokenizer is "auto". ValueError for a revision of what is
    no name of the hub, and of a name that has another already.
    """
    if tokenizer_revision is not None and tokenizer is not None:
        tokenizer = _at(model if tokenizer == "auto" else tokenizer, tokenizer_revision, "tokenizer_revision")
    return (model if revision is None else _at(model, revision, "revision")), tokenizer


def _at(name: str | Path, revision: Any, argument: str) -> str:
    name = str(name)
    given = f"{argument} is {quoted(revision)}"
    named = None if is_there(Path(name).expanduser()) else parse(name)
    if named is None:
        raise ValueError(f"{given}, but {quoted(name)} is no owner/name of the Hugging Face hub")
    if named.revision not in (None, revision):
        raise ValueError(f"{given}, but {quoted(name)} names another")
    whole = named._replace(revision=str(revision))
    if not isinstance(revision, str) or not revision or parse(str(whole)) != whole:
        raise ValueError(f"{given}, which is not a branch, tag or commit")
    return str(whole)


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
