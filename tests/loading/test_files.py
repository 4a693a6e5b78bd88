"""What stands where a model's file should be: anything but a regular, readable file is one line, at once."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folder import save_tiny

from octavo.gpt.loading import files
from octavo.gpt.loading.fetch import SCRATCH, STALE_SECONDS, _sweep
from octavo.gpt.loading.loader import load_model
from octavo.kernels.ops import REFERENCE

ODD = {"a folder": Path.mkdir, "a pipe": os.mkfifo, "links lead in a circle": lambda path: path.symlink_to(path)}
NAMES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip
READERS = (files.open_file, files.read_whole, files.read_text, files.read_json)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("whole"))


def refused(name: str | Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model(name, REFERENCE, "float32", "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("what", "make"), ODD.items(), ids=ODD)
@pytest.mark.parametrize("name", NAMES)
def test_odd_parts_of_a_model_folder(
    tmp_path: Path, whole: Path, name: str, what: str, make: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert re.fullmatch(rf"{folder / name}: .*{what}.*", refused(folder))


@pytest.mark.parametrize(("what", "make"), ODD.items(), ids=ODD)
def test_odd_gguf_files(tmp_path: Path, what: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.gguf")
    assert str(tmp_path / "m.gguf") in refused(tmp_path / "m.gguf")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", NAMES)
def test_files_that_may_not_be_read(tmp_path: Path, whole: Path, name: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    (folder / name).touch()
    (folder / name).chmod(0)
    assert refused(folder) == f"{folder / name}: cannot be read: Permission denied"


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "f").touch()
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ValueError, match="f: cannot be read: Permission denied"):
        read(tmp_path / "f")


@pytest.mark.parametrize("name", ["a/" + "b" * 5000, "/" + "b" * 5000, "~nosuchuser/x", "a\0b", "/tmp/a\0b", "nosuch"])
def test_names_that_no_file_can_have(name: str) -> None:
    assert len(refused(name)) < 1000


def test_what_is_not_there_is_missing_and_what_is_too_long_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, long = tmp_path / "missing", tmp_path / "long.json"
    long.write_text('{"a": 1}')
    assert not files.is_there(missing)
    assert files.read_json(missing) == {}
    with pytest.raises(FileNotFoundError, match="missing: no such file"):
        files.open_file(missing)
    assert files.read_json(long) == {"a": 1}
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 4)
    with pytest.raises(ValueError, match=r"long\.json: 8 bytes, at most 4 are read"):
        files.read_json(long)


@pytest.mark.parametrize("digits", [101, 4299, 10**6])
def test_integers_without_end_are_not_parsed(tmp_path: Path, digits: int) -> None:
    (tmp_path / "f.json").write_text(f'{{"a": {"9" * digits}}}')
    with pytest.raises(ValueError, match=rf"f\.json: not valid JSON: an integer of {digits:,} digits"):
        files.read_json(tmp_path / "f.json")


def test_sweeping_survives_what_others_remove_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, dangling, gone = (tmp_path / f"{SCRATCH}{name}" for name in ("old", "dangling", "gone"))
    old.mkdir()
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (old, dangling):
        os.utime(path, (0, STALE_SECONDS), follow_symlinks=False)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [gone, old, dangling])
    _sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
