"""Names to paths: what stands for itself, what is unknown, and what the Hugging Face hub is asked for."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.gpt.loading import hub


def test_paths_stand_for_themselves(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve(str(file)) == file


@pytest.mark.parametrize("name", ["", "gpt5", "a/b/c", "spaces in it", "owner/", "http://host/model"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown model '{name}': give a folder, a .gguf file, smollm2, gpt2, gpt2-medium"
    ):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "missing.gguf", "a/model.safetensors"])
def test_missing_paths(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt"])
def test_files_that_are_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a model is a folder with config\.json and safetensors, or a \.gguf file"):
        hub.resolve(str(tmp_path / name))


def test_the_hub_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match=r"openai-community/gpt2 is on the Hugging Face hub: pip install 'octavo\[hub\]'"
    ):
        hub.resolve("gpt2")


def test_a_hub_that_does_not_answer_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long tail")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(ValueError, match=r"does not give owner/name: no route to host$"):
        hub.resolve("owner/name")


def test_the_hub_gives_a_folder_of_the_needed_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    there = [
        "config.json", "model.safetensors", "model.safetensors.index.json", "merges.txt", "chat_template.jinja",
        "pytorch_model.bin", "consolidated.safetensors", "original/params.json", "onnx/model.safetensors", "README.md",
    ]  # fmt: skip
    asked = {}

    def snapshot_download(repository: str, **patterns: Any) -> str:
        asked[repository] = list(filter_repo_objects(there, **patterns))
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert hub.resolve("gpt2-xl") == hub.resolve("owner/name") == tmp_path
    assert asked == {"openai-community/gpt2-xl": there[:5], "owner/name": there[:5]}
