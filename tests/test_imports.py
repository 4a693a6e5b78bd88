"""Imports run one way (DESIGN.md), and the library needs nothing optional to be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = {"sequence", "blocks", "prefixes", "scheduler", "sampling_params"}
STANDARD_OR_OWN = {"octavo.gpt." + name for name in (*TORCH_FREE, "config")}


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


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def first_names(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda path: path.stem)
def test_kernels_know_nothing_of_models(path):
    assert not [name for name in imports(path) if name.startswith(("octavo.gpt", "octavo.bench"))]


@pytest.mark.parametrize("path", modules("gpt"), ids=lambda path: path.stem)
def test_the_engine_reaches_kernels_only_through_ops(path):
    reached = {name for name in imports(path) if name.startswith("octavo.kernels.")}
    assert all(name.split(".")[:3] == ["octavo", "kernels", "ops"] for name in reached)
    assert "triton" not in first_names(path)
    assert not [name for name in imports(path) if name.startswith("octavo.bench")]


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_scheduling_is_integers_only(name):
    for module in imports(ROOT / "gpt" / f"{name}.py"):
        own = any(module == allowed or module.startswith(allowed + ".") for allowed in STANDARD_OR_OWN)
        assert own or module.split(".")[0] in sys.stdlib_module_names, f"{name} imports {module}"


@pytest.mark.parametrize("folder", ["kernels", "gpt", "bench"])
def test_nothing_shadows_another_distribution(folder):
    """A top-level package `kernels` belongs to someone else; ours are octavo.kernels, octavo.gpt, octavo.bench."""
    for path in modules(folder):
        assert not first_names(path) & {"kernels", "gpt", "bench"}, path
    assert not (ROOT / "kernels" / "__init__.py").exists()


def blocked(statement: str, module: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.modules[{module!r}] = None; {statement}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_front_door_opens_without_triton():
    assert blocked("import octavo.gpt", "triton").returncode == 0


def test_this_test_can_fail():
    assert blocked("import triton", "triton").returncode != 0


def test_asking_for_triton_where_there_is_none_is_one_line():
    result = blocked("from octavo.kernels import ops; ops.load('triton')", "triton")
    assert result.returncode != 0
    assert "RuntimeError: backend 'triton'" in result.stderr.splitlines()[-1]
