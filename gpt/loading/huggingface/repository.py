"""A repository of the Hugging Face hub, by huggingface_hub: its listing, and its files in that library's own cache.

Where the hub gives no answer, what the cache holds is used.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import huggingface_hub.utils
from huggingface_hub import constants, errors

from octavo.gpt.loading.huggingface.name import HubName
from octavo.gpt.loading.huggingface.refusals import refusal, state
from octavo.gpt.quoting import one_line


class Repository(NamedTuple):
    """The files of one revision, as the hub lists them or as the cache holds them."""

    name: HubName
    listing: list[str]
    commit: str | None
    cached: Path | None  # the folder of the cache where the hub gave no answer
    why_cached: str  # in what state the hub is then

    @property
    def label(self) -> str:
        """How messages call it."""
        where = f", as far as it is in the cache ({self.why_cached})" if self.cached else " of the Hugging Face hub"
        return f"{one_line(str(self.name), 120)}{where}"

    def fetch(self, files: Sequence[str]) -> Path:
        """The folder with those files, fetched where they are missing; ValueError in one line where they cannot be."""
        if folder := self.cached or self._whole_folder(files):
            return folder
        try:
            with _progress_bars() as bars:
                folder = huggingface_hub.snapshot_download(
                    self.name.repository,
                    revision=self.name.revision,
                    allow_patterns=[glob.escape(file) for file in files],
                    endpoint=_endpoint(),
                    tqdm_class=bars,
                )
        except Exception as error:
            raise refusal(self.name, error) from None
        return Path(folder)

    def _whole_folder(self, files: Sequence[str]) -> Path | None:
        """The folder of the cache where it has all of the files."""
        name, commit = self.name.repository, self.commit
        found = [huggingface_hub.try_to_load_from_cache(name, file, revision=commit) for file in files]
        paths = [Path(each) for each in found if isinstance(each, str)]
        return paths[0].parents[files[0].count("/")] if len(paths) == len(files) else None


@contextmanager
def _progress_bars() -> Iterator[type]:
    """The library's progress bars, on terminals alone; all are closed, or what is printed next would lie among them."""
    opened: list[Any] = []

    class Bars(huggingface_hub.utils.tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"disable": None, **options})
            opened.append(self)

    try:
        yield Bars
    finally:
        for bar in opened:
            bar.close()


def open_repository(name: HubName) -> Repository:
    """The repository as the hub lists it, else as it is cached; ValueError in one line where neither is to be had."""
    try:
        found = huggingface_hub.HfApi(endpoint=_endpoint()).model_info(
            name.repository, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )  # fmt: skip
    except Exception as error:
        folder = _cached_folder(name, error)
        if folder is None:
            raise refusal(name, error) from None
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return Repository(name, files, folder.name, folder, state(error))
    listed = [file.rfilename for file in found.siblings or []]
    return Repository(name, [file for file in listed if ".." not in file.split("/")], found.sha, None, "")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None  # read now: the library reads it only once


def _cached_folder(name: HubName, error: Exception) -> Path | None:
    """The cached files of the revision; None where there are none, or where the hub says that there is no such."""
    if isinstance(error, errors.RevisionNotFoundError):
        return None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name.repository, revision=name.revision, local_files_only=True, allow_patterns=[]
            )
        )
    except Exception:
        return None
