"""What type checkers find in a user's program, where the wheel and PyTorch are installed: what is wrong, nothing else.

Pyright and mypy read `user_code.py` in their strict modes. Mypy reads all of PyTorch, which is slow.
"""

import importlib
import json
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = Path(__file__).parent / "user_code.py"

Found = set[tuple[int, str]]  # number of the line, the checker's code of what is wrong there


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and PyTorch, nothing else."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site_packages)
    (torch,) = importlib.import_module("torch").__path__
    (site_packages / "torch").symlink_to(torch)
    return home / "bin" / "python"


def run(folder: Path, *command: object) -> str:
    command = sys.executable, "-m", *map(str, command)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def mypy(python: Path, code: Path) -> Found:
    pytest.importorskip("mypy")
    out = run(code.parent, "mypy", "--strict", "--python-executable", python, "--config-file=", code.name)
    assert "checked 1 source file" in out, out
    return {(int(line), kind) for line, kind in re.findall(rf"^{code.name}:(\d+): error: .*\[([\w-]+)\]$", out, re.M)}


def pyright(python: Path, code: Path) -> Found:
    pytest.importorskip("pyright")
    settings = {"include": [code.name], "typeCheckingMode": "strict"}
    (code.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    report = json.loads(run(code.parent, "pyright", "--outputjson", "--pythonpath", python))
    assert report["summary"]["filesAnalyzed"] == 1, report
    return {(each["range"]["start"]["line"] + 1, each["rule"]) for each in report["generalDiagnostics"]}


def planted(program: str, is_pyright: bool) -> Found:
    """What the comments of a program say of its lines. Pyright's codes begin with "report", mypy's do not."""
    return {
        (number, kind)
        for number, line in enumerate(program.splitlines(), start=1)
        for kind in line.partition("# wrong: ")[2].split(", ")
        if kind and kind.startswith("report") == is_pyright
    }


@pytest.mark.parametrize("check", [pytest.param(mypy, marks=pytest.mark.slow), pyright])
def test_a_type_checker_finds_what_is_wrong_and_nothing_else(
    check: Callable[[Path, Path], Found], python: Path, tmp_path: Path
) -> None:
    program = CODE.read_text()
    (code := tmp_path / CODE.name).write_text(program)
    wrong = planted(program, check is pyright)
    assert len({number for number, _ in wrong}) == program.count("# wrong: ") > 20
    assert check(python, code) == wrong
