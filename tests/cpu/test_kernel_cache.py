"""Machine code on disk: kept where that can be, never stale, never half a file; compiled again wherever in doubt."""

import ast
import errno
import os
import pickle
import pwd
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from numba.core.ccallback import CFunc

from octavo.kernels import reference
from octavo.kernels.cpu import kernel_cache, norm
from octavo.kernels.cpu.numba_kernel import Kernel, cpu_kernel

X, WEIGHT = torch.linspace(-2, 2, 128).view(2, 64), torch.linspace(0.5, 1.5, 64)
KEY = b"key"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which alone machine code is kept."""
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_cache, "_warned", [])
    return tmp_path / "octavo"


@pytest.fixture
def compilations(monkeypatch):
    """A list that grows by a name for each kernel that numba compiles."""
    names: list[str] = []
    compile = CFunc._compile_uncached
    monkeypatch.setattr(CFunc, "_compile_uncached", lambda self: names.append(self.__name__) or compile(self))
    return names


def run_in_new_process() -> None:
    """Compile and run a kernel as a process does that has not run it yet; its values are the reference's."""
    kernel, out = Kernel(norm._rms_norm.function, norm._rms_norm.layout), torch.empty_like(X)
    kernel(torch.float32, X.numel(), X, X, X, WEIGHT, out, 2, 64, 1, 64, 0, 1e-5)
    torch.testing.assert_close(out, reference.rms_norm(X, WEIGHT, 1e-5))


def run_twice() -> None:
    run_in_new_process()
    run_in_new_process()


def test_a_second_process_compiles_nothing(folder, compilations):
    run_in_new_process()
    run_in_new_process()
    assert compilations == ["_rms_norm"]
    assert [path.suffix for path in folder.iterdir()] == [".kernel"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
        lambda content: content + b"x",
        lambda content: pickle.dumps(None),
    ],
    ids=["empty", "a piece of the hash", "half", "all but a byte", "a bit turned", "a byte more", "something else"],
)
def test_a_damaged_file_is_compiled_again_and_written_anew(folder, compilations, damage):
    run_in_new_process()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    run_in_new_process()
    run_in_new_process()
    assert compilations == ["_rms_norm"] * 2
    assert list(folder.iterdir()) == [path]
    assert kernel_cache.read(path, b"another key") is None


@pytest.mark.parametrize("name", ["SOURCES", "VERSIONS"])
def test_what_other_sources_and_versions_left_is_not_used(folder, compilations, monkeypatch, name):
    run_in_new_process()
    monkeypatch.setattr(kernel_cache, name, (*getattr(kernel_cache, name), "changed"))
    run_in_new_process()
    assert compilations == ["_rms_norm"] * 2


def test_what_another_processor_left_is_not_used(folder, compilations, monkeypatch):
    run_in_new_process()
    codegen = type(CFunc._targetdescr.target_context.codegen())
    monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("x86_64", "another", "+avx"))
    run_in_new_process()
    assert compilations == ["_rms_norm"] * 2


@pytest.mark.parametrize("name", ["cpu_norm.py", "norm.py", "deep/norm.py", "../math.py"])
def test_the_key_follows_every_source(tmp_path, name):
    folder, math = tmp_path / "cpu", tmp_path / "math.py"
    (folder / "deep").mkdir(parents=True)
    (folder / "launcher.py").write_text("x = 1")
    keys = {kernel_cache.digest_of(folder, math)}
    for text in ("y = 1", "y = 2"):
        (folder / name).write_text(text)
        keys.add(kernel_cache.digest_of(folder, math))
    assert len(keys) == 3


@pytest.mark.parametrize("path", sorted(kernel_cache.HERE.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_compiled_uses_nothing_of_ours_from_other_folders(path):
    """The key follows the sources of this folder and the arithmetic of sampling, and no others."""
    body = ast.parse(path.read_text()).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.module and "octavo" in node.module]
    inside = ("octavo.kernels.cpu.", f"octavo.kernels.{kernel_cache.MATH.stem}.")
    outside = [node for node in imports if not f"{node.module}.".startswith(inside)]
    names = {alias.asname or alias.name for node in outside for alias in node.names}
    for function in (node for node in body if isinstance(node, ast.FunctionDef)):
        decorators = " ".join(map(ast.unparse, function.decorator_list))
        if any(word in decorators for word in ("njit", "cpu_kernel", "intrinsic", "overload")):
            used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            assert not used & names, f"{function.__name__} uses {used & names}"


@cpu_kernel("v q")
def _of_this_file(fields):
    pass


def test_kernels_whose_sources_are_not_the_key_are_not_kept(folder, monkeypatch):
    _of_this_file(torch.float32, 1, X, 1)
    assert not folder.exists()
    monkeypatch.setattr(kernel_cache, "SOURCES", kernel_cache.digest_of(folder))
    run_in_new_process()
    assert not folder.exists()


def test_on_a_full_disk_it_compiles_with_one_warning(folder, compilations, monkeypatch):
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.warns(RuntimeWarning, match="cannot be kept: No space left on device: .*; set NUMBA_CACHE_DIR") as seen:
        run_twice()
    assert len(seen) == 1
    assert compilations == ["_rms_norm"] * 2
    assert list(folder.iterdir()) == []


def test_where_no_folder_can_be_it_compiles_with_one_warning(tmp_path, compilations, monkeypatch):
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "")
    monkeypatch.setattr(kernel_cache, "_warned", [])
    (tmp_path / "__pycache__").write_text("")
    monkeypatch.setattr(kernel_cache, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    with pytest.warns(RuntimeWarning, match="cannot be kept: .*__pycache__; set NUMBA_CACHE_DIR") as seen:
        run_twice()
    assert len(seen) == 1
    assert compilations == ["_rms_norm"] * 2


def test_an_install_that_was_compiled_before_needs_no_writable_folder(tmp_path, compilations, monkeypatch):
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "")
    monkeypatch.setattr(kernel_cache, "HERE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    run_in_new_process()
    monkeypatch.setattr(kernel_cache, "write", None)
    with warnings.catch_warnings(action="error"):
        run_in_new_process()
    assert compilations == ["_rms_norm"]


@pytest.mark.parametrize("home", ["", "relative", "~nobody-of-that-name"])
def test_without_a_home_only_the_folder_beside_the_sources_is_left(monkeypatch, home):
    monkeypatch.setattr(kernel_cache.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert list(kernel_cache.folders()) == [kernel_cache.HERE / "__pycache__"]


def test_after_an_upgrade_the_new_code_runs(tmp_path):
    """As an install that cannot be written is upgraded: another process, its cache in the user's folder."""
    package = tmp_path / "site" / "octavo"
    shutil.copytree(
        kernel_cache.HERE.parent, package / "kernels", ignore=shutil.ignore_patterns("__pycache__", "codegen")
    )
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    program = (
        "import torch; from octavo.kernels.backends import load; "
        "print(round(float(load('cpu').silu_mul(torch.ones(1, 8))[0, 0]), 4))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def silu_of_one() -> float:
        command = [sys.executable, "-c", program]
        return float(subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True).stdout)

    assert silu_of_one() == 0.7311
    source = package / "kernels" / "cpu" / "numba_kernel.py"
    text = source.read_text()
    assert text.count("r + np.float32(1)") == 1
    source.write_text(text.replace("r + np.float32(1)", "r + np.float32(3)"))
    assert silu_of_one() != 0.7311
    assert (tmp_path / "octavo" / "kernels").is_dir()
