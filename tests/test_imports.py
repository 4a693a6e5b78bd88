"""Imports run one way, every folder is a listed package, and nothing optional is needed to import the library."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "gpt", "bench")
DOORS = ("octavo.kernels.ops", "octavo.kernels.backends", "octavo.kernels.weights")  # of kernels, for gpt

STANDARD_OR_OWN = (
    "octavo.gpt.scheduler",
    "octavo.gpt.sampling_params",
    "octavo.gpt.quoting",
    "octavo.gpt.options.checks",
    "octavo.gpt.structured.params",
)


def modules(folder: str, root: Path = ROOT) -> list[Path]:
    """Every Python file below a folder, at any depth; a folder where none is found is a mistake in the test."""
    found = sorted((root / folder).rglob("*.py"))
    assert found, f"no Python file below {root / folder}"
    return found


def imports(path: Path) -> set[str]:
    """The modules a file imports anywhere, `from a import b` as both `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden_in_kernels(path: Path) -> list[str]:
    return [name for name in imports(path) if is_below(name, "octavo.gpt", "octavo.bench")]


def forbidden_in_gpt(path: Path) -> list[str]:
    """Models and engine reach kernels through three doors, never triton, and know no benchmark."""
    inner = [name for name in imports(path) if is_below(name, "octavo.kernels") and name != "octavo.kernels"]
    foreign = [name for name in imports(path) if is_below(name, "octavo.bench", "triton")]
    return foreign + [name for name in inner if not is_below(name, *DOORS)]


def in_folder(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", modules(folder), ids=lambda path: str(path.relative_to(ROOT)))


@in_folder("kernels")
def test_kernels_know_nothing_of_models(path):
    assert forbidden_in_kernels(path) == []


@in_folder("gpt")
def test_the_engine_reaches_kernels_only_through_ops(path):
    assert forbidden_in_gpt(path) == []


@pytest.mark.parametrize("check", [forbidden_in_kernels, forbidden_in_gpt])
def test_a_forbidden_import_is_found_however_deep_it_lies(check, tmp_path):
    deep = tmp_path / "kernels" / "cpu" / "bad.py"
    deep.parent.mkdir(parents=True)
    deep.write_text("def late():\n    from octavo.bench.reporting.records import read\n")
    assert [check(path) for path in modules("kernels", tmp_path)] != [[]]


def test_a_walk_that_sees_no_file_fails(tmp_path):
    with pytest.raises(AssertionError, match="no Python file"):
        modules("kernels", tmp_path)


@pytest.mark.parametrize("path", [*modules("gpt/scheduler"), ROOT / "gpt" / "sampling_params.py"], ids=lambda p: p.stem)
def test_scheduling_is_integers_only(path):
    for module in imports(path):
        assert is_below(module, *STANDARD_OR_OWN) or module.split(".")[0] in sys.stdlib_module_names, module


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_shadows_another_distribution(folder):
    """A top-level package `kernels` belongs to someone else; ours are octavo.kernels, octavo.gpt, octavo.bench."""
    for path in modules(folder):
        assert not [name for name in imports(path) if is_below(name, *PACKAGES)], path
    assert not (ROOT / "kernels" / "__init__.py").exists()


def package_folders() -> set[str]:
    """The import package of every folder that holds Python files."""
    return {".".join(("octavo", *path.parent.relative_to(ROOT).parts)) for name in PACKAGES for path in modules(name)}


def test_every_folder_is_a_listed_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == package_folders()


STARTS = {  # what a program begins with -> the packages of others that this loads
    "import octavo.gpt": set(),
    "from octavo.gpt.cli import main; main(['--version'])": {"rich"},
    "from octavo.gpt.cli import main; main(['--help'])": {"rich"},
    "from octavo.gpt import *": {"gguf", "jinja2", "markupsafe", "numpy", "tokenizers", "torch", "tqdm"},
}
OPTIONAL_OR_SLOW = {"huggingface_hub", "numba", "pygments", "tiktoken", "tqdm", "transformers", "triton"}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_no_package_that_it_can_do_without(start):
    """Of those that others load in turn, only the slow ones and the optional ones count."""
    program = (
        f"import atexit, sys; before = {{*sys.modules}}\n"
        f"atexit.register(lambda: print(*{{*sys.modules}} - before, file=sys.stderr))\n{start}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    of_ours = {name.partition(".")[0] for path in modules("gpt") for name in imports(path)} | OPTIONAL_OR_SLOW
    assert "octavo" in loaded
    assert loaded & of_ours - sys.stdlib_module_names - {"octavo"} == STARTS[start]


def blocked(statement: str, module: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.modules[{module!r}] = None; {statement}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_front_door_opens_without_triton():
    assert blocked("import octavo.gpt", "triton").returncode == 0


def test_this_test_can_fail():
    assert blocked("import triton", "triton").returncode != 0


def test_asking_for_triton_where_there_is_none_is_one_line():
    result = blocked("from octavo.kernels import backends; backends.load('triton')", "triton")
    assert result.returncode != 0
    assert "RuntimeError: backend 'triton'" in result.stderr.splitlines()[-1]


def own_imports(path: Path, names: dict[str, Path]) -> set[str]:
    """The modules of this project that a file imports when it is imported itself, not later inside a function."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names.keys()


def test_no_import_goes_in_a_circle():
    paths = [path for name in PACKAGES for path in modules(name)]
    names = {".".join(("octavo", *path.relative_to(ROOT).with_suffix("").parts)): path for path in paths}
    left = {name: own_imports(path, names) for name, path in names.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_no_folder_holds_more_than_14_files_and_no_file_more_than_350_lines(folder):
    paths = modules(folder)
    assert {path: lines for path in paths if (lines := len(path.read_text().splitlines())) > 350} == {}
    counts = {parent: len(list(parent.glob("*.py"))) for parent in {path.parent for path in paths}}
    assert {parent: count for parent, count in counts.items() if count > 14} == {}
