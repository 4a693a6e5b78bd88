"""A backend is the reference with functions replaced: each takes what its namesake takes."""

import inspect
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from octavo.kernels import backends, ops, reference

KERNELS = {
    "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "rope", "silu_mul", "gelu_mul",
    "linear", "write_kv", "causal_attention", "paged_attention",
    "apply_penalties", "sample", "lm_head_sample", "top_logprobs",
}  # fmt: skip


@pytest.mark.parametrize("op", ops.OP_NAMES)
@pytest.mark.parametrize("backend", [name for name in backends.BACKENDS if name != "reference"])
def test_signature_is_the_reference_s(backend, op):
    ours, theirs = (
        inspect.signature(function) for function in (getattr(backends.load(backend), op), getattr(reference, op))
    )
    assert ours == theirs


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_triton_has_a_kernel_of_its_own(op):
    function = getattr(backends.load("triton"), op)
    assert function.__name__ == op
    assert function is not getattr(reference, op)


def test_an_op_that_was_put_into_a_backend_is_not_captured_unless_it_was_declared():
    """A wrapped reference op reads values on the host as the op itself does, and is another function."""
    triton, wrapped = backends.load("triton"), partial(reference.sample)
    assert backends.can_be_captured(triton)
    assert replace(triton, sample=wrapped).syncs == replace(triton, sample=reference.sample).syncs == {"sample"}
    assert not backends.can_be_captured(replace(triton, sample=wrapped))
    assert backends.can_be_captured(replace(triton, sample=wrapped).with_syncs())
    assert backends.can_be_captured(replace(triton, silu_mul=reference.silu_mul))


@pytest.mark.parametrize("op", ["linear", "write_kv"])
def test_a_cpu_graph_needs_a_declared_op_too(op):
    cpu = backends.load("cpu")
    ours = replace(cpu, **{op: partial(getattr(cpu, op))})
    assert backends.graph_capture(ours) is None
    assert backends.graph_capture(ours.with_syncs("sample", "lm_head_sample")) is cpu.capture


WRONG = """
from torch import Tensor
from octavo.kernels.ops import Ops
def call(ops: Ops, x: Tensor) -> Tensor:
    y: Tensor = ops.linear(x, x, None, "gelu")
    ops.rope(x)
    ops.rms_norm(x, x, x)
    ops.linear(x, x, None, 3)
    return y
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_arguments_of_an_op(tmp_path):
    api = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[2]
    (tmp_path / "octavo").mkdir()
    (tmp_path / "octavo" / "kernels").symlink_to(root / "kernels")
    (tmp_path / "snippet.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nmypy_path = .\nnamespace_packages = true\nexplicit_package_bases = true\n"
        "ignore_missing_imports = true\nfollow_imports_for_stubs = false\n"
        "[mypy-triton.*,numba.*,llvmlite.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "snippet.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert api
    found = [int(line.split(":")[1]) for line in done.stdout.splitlines() if line.startswith("snippet.py")]
    assert sorted(set(found)) == [6, 7, 8], done.stdout
