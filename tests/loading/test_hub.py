"""Names to paths: what stands for itself, what is unknown, and what is a name of the Hugging Face hub."""

from pathlib import Path
from typing import Any

import pytest

from octavo.gpt.loading import hub
from octavo.gpt.loading.huggingface.choice import Wanted
from octavo.gpt.loading.huggingface.name import HubName, parse


def test_paths_stand_for_themselves(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve(str(file)) == file


@pytest.mark.parametrize("name", ["own@er/na@me", "owner/name:Q4_K_M", "owner/name/file.gguf", "C:\\models"])
def test_what_exists_is_never_looked_for_on_the_hub(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(name) == Path(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "gpt5", "a/b/c", "spaces in it", "owner/", "/".join("owner"), "http://host/model", "owner/name@", "gpt2:",
        "owner/name:Q4_K_M:Q8_0", "owner/name@a/file.gguf@b", "owner/name:Q4/K", "gpt5@main", "owner/..",
    ],
)  # fmt: skip
def test_unknown_names(name: str) -> None:
    assert parse(name) is None
    with pytest.raises(
        ValueError, match=rf"unknown model '{name}': give a folder, a .gguf file, smollm2, gpt2, gpt2-medium"
    ):
        hub.resolve(name)


A_COMMIT = "c0ffee" * 6 + "abcd"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("own/er", "auto", None, None), ("own/er", "auto")),
        (("own/er", None, "v1", "v2"), ("own/er@v1", None)),
        (("own/er", "auto", A_COMMIT, None), (f"own/er@{A_COMMIT}", "auto")),
        (("own/er@v1", "auto", "v1", "v1"), ("own/er@v1", "own/er@v1")),
        (("own/er:Q8_0", "an/other", "feature/x", "refs/pr/1"), ("own/er:Q8_0@feature/x", "an/other@refs/pr/1")),
        (("own/er/m.gguf", "/folder", "v1", None), ("own/er/m.gguf@v1", "/folder")),
        (("gpt2", "auto", "main", None), ("openai-community/gpt2@main", "auto")),
    ],
)
def test_revisions_apart_from_the_name(given: Any, expected: tuple[str, str | None]) -> None:
    assert hub.at_revisions(*given) == expected


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("smollm2", "auto", "v1", None), "revision is 'v1', but 'smollm2' is no owner/name of the Hugging Face hub"),
        ((Path(__file__), "auto", "v1", None), f"revision is 'v1', but '{__file__}' is no owner/name"),
        (("own/er@v1", "auto", "v2", None), "revision is 'v2', but 'own/er@v1' names another"),
        (("own/er@v1", "auto", None, "v2"), "tokenizer_revision is 'v2', but 'own/er@v1' names another"),
        (("own/er", "dummy:gpt2", None, "v1"), "tokenizer_revision is 'v1', but 'dummy:gpt2' is no owner/name"),
        (("own/er", "auto", "a:b", None), "revision is 'a:b', which is not a branch, tag or commit"),
        (("own/er", "auto", "", None), "revision is '', which is not a branch, tag or commit"),
        (("own/er", "auto", 3, None), "revision is 3, which is not a branch, tag or commit"),
    ],
)
def test_revisions_of_nothing(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        hub.at_revisions(*given)


def test_unknown_adapters() -> None:
    for name in ("adapter", "smollm2"):
        with pytest.raises(
            ValueError, match=rf"unknown adapter '{name}': give a folder in PEFT's format or owner/name"
        ):
            hub.resolve(name, Wanted.ADAPTER)


@pytest.mark.parametrize(
    "name",
    [
        "./nowhere", "/nowhere/at/all", "~/nowhere", "missing.gguf", "a/model.safetensors", "folder/file.gguf",
        "models\\llama", "C:\\models\\llama.gguf", "C:/models/llama", "D:\\a@b:Q4", "a/b/pytorch_model.bin",
        "../owner/name:Q4_K_M",
    ],
)  # fmt: skip
def test_missing_paths(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        hub.resolve(name)


def test_a_missing_file_of_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"models/llama/file\.gguf: no such file or folder"):
        hub.resolve("models/llama/file.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt"])
def test_files_that_are_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a model is a folder with config\.json and safetensors, or a \.gguf file"):
        hub.resolve(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "repository", "revision", "quantisation", "file"),
    [
        ("owner/name", "owner/name", None, None, None),
        ("owner/name/", "owner/name", None, None, None),
        ("Qwen/Qwen2.5-0.5B_x", "Qwen/Qwen2.5-0.5B_x", None, None, None),
        ("gpt2", "openai-community/gpt2", None, None, None),
        ("gpt2-xl@v1.0", "openai-community/gpt2-xl", "v1.0", None, None),
        ("owner/name@main", "owner/name", "main", None, None),
        ("owner/name@refs/pr/12", "owner/name", "refs/pr/12", None, None),
        ("owner/name@feature/new", "owner/name", "feature/new", None, None),
        ("owner/name:Q4_K_M", "owner/name", None, "Q4_K_M", None),
        ("owner/name:ud-q2_k_xl", "owner/name", None, "ud-q2_k_xl", None),
        ("owner/name@main:Q8_0", "owner/name", "main", "Q8_0", None),
        ("owner/name:Q8_0@main", "owner/name", "main", "Q8_0", None),
        ("owner/name/file.Q4_0.gguf", "owner/name", None, None, "file.Q4_0.gguf"),
        ("owner/name/BF16/file.gguf", "owner/name", None, None, "BF16/file.gguf"),
        ("owner/name@main/file.gguf", "owner/name", "main", None, "file.gguf"),
        ("owner/name@refs/pr/1/a/file.gguf", "owner/name", "refs/pr/1", None, "a/file.gguf"),
        ("owner/name/file.gguf@feature/new", "owner/name", "feature/new", None, "file.gguf"),
        ("hf.co/owner/name:Q4_K_M", "owner/name", None, "Q4_K_M", None),
        ("hf://owner/name@v2", "owner/name", "v2", None, None),
        ("https://huggingface.co/owner/name", "owner/name", None, None, None),
        ("https://huggingface.co/owner/name/tree/main", "owner/name", "main", None, None),
        ("https://huggingface.co/owner/name/blob/main/a/b.gguf", "owner/name", "main", None, "a/b.gguf"),
        ("https://huggingface.co/owner/weights.gguf", "owner/weights.gguf", None, None, None),
    ],
)
def test_names_of_the_hub(
    name: str, repository: str, revision: str | None, quantisation: str | None, file: str | None
) -> None:
    assert parse(name) == HubName(repository, revision, quantisation, file)
    assert parse(str(parse(name))) == parse(name)
