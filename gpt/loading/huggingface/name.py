"""Names of models on the Hugging Face hub as people type them: owner/name, and what of it."""

import re
from pathlib import Path
from typing import NamedTuple

from octavo.gpt.loading.hf import PICKLES

ALIASES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}

HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://(?:models/)?")
NAME = re.compile(
    r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)"
    r"(?:@(?P<revision>refs/pr/\d+|[^:@]+?)|/(?:tree|blob|resolve)/(?P<page>[^/:@]+))?"
    r"(?::(?P<quantisation>[\w.-]+)|/(?P<file>[^:@]+\.gguf))?"
    r"(?:@(?P<last_revision>[^:@]+))?/?",
    re.IGNORECASE,
)
NO_GGUF = (".safetensors", *PICKLES)
DRIVE = re.compile(r"[A-Za-z]:[/\\]")


class HubName(NamedTuple):
    """A repository of the hub, and what of it: one revision, one quantisation or file where it holds GGUF files."""

    repository: str  # owner/name
    revision: str | None = None  # a branch, tag or commit; None for the default branch
    quantisation: str | None = None  # as in Q4_K_M
    file: str | None = None  # a GGUF file of the repository

    def __str__(self) -> str:
        of_it = (f":{self.quantisation}" if self.quantisation else "") + (f"/{self.file}" if self.file else "")
        return self.repository + of_it + (f"@{self.revision}" if self.revision else "")


def parse(name: str) -> HubName | None:
    """The hub's name that a text is, or None.

    owner/name, owner/name:QUANTISATION and owner/name/FILE.gguf, each with @REVISION behind the repository or at the
    end, by themselves or as addresses of the hub's pages; in the place of owner/name one of `ALIASES`.
    """
    plain = HOST.sub("", name, count=1) if HOST.match(name) else name
    match = NAME.fullmatch(plain)
    if match is None:
        return None
    repository = ALIASES.get(match["repository"], match["repository"])
    revisions = [match[group] for group in ("revision", "page", "last_revision") if match[group]]
    if "/" not in repository or not all(part.strip(".") for part in repository.split("/")) or len(revisions) > 1:
        return None
    return HubName(repository, revisions[0] if revisions else None, match["quantisation"], match["file"])


def is_like_path(name: str) -> bool:
    """Whether a text that names nothing on this disk can only have been meant as a path."""
    if HOST.match(name):
        return False
    if name.startswith((".", "/", "~")) or "\\" in name or DRIVE.match(name) or name.endswith(NO_GGUF):
        return True
    if not name.endswith(".gguf"):
        return False
    return name.count("/") < 2 or Path(name).parent.is_dir()
