"""No tensor of ours depends on the process's default dtype or device: every allocation names both."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTORIES = {
    "arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "tensor", "tril_indices", "zeros",
}  # fmt: skip


def allocations(path: Path) -> list[ast.Call]:
    """Calls of torch's factories; `tl` has namesakes inside Triton's kernels, which allocate nothing."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
    ]


def unnamed(call: ast.Call) -> list[str]:
    given = {keyword.arg for keyword in call.keywords}
    return [] if None in given else sorted({"dtype", "device"} - given)  # None: a dict of keywords


@pytest.mark.parametrize("folder", ["kernels", "gpt"])
def test_every_allocation_names_its_dtype_and_device(folder: str) -> None:
    sources = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.parent.name != "testing"]
    calls = [(path, call) for path in sources for call in allocations(path)]
    assert len(calls) > 5, "the walk sees nothing"
    faults = [f"{path.relative_to(ROOT)}:{call.lineno} lacks {' and '.join(unnamed(call))}" for path, call in calls]
    assert not [fault for fault, (_, call) in zip(faults, calls, strict=True) if unnamed(call)]


def test_the_lint_can_fail() -> None:
    (call,) = (node for node in ast.walk(ast.parse("torch.empty(3, dtype=d)")) if isinstance(node, ast.Call))
    assert unnamed(call) == ["device"]
