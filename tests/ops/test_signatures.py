"""A backend is the reference with functions replaced: each takes what its namesake takes."""

import inspect

import pytest

from octavo.kernels import ops, reference

KERNELS = {
    "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "rope", "bias_gelu", "silu_mul",
    "linear", "write_kv", "causal_attention", "paged_attention",
    "apply_penalties", "sample", "lm_head_sample", "top_logprobs",
}  # fmt: skip


@pytest.mark.parametrize("op", ops.OP_NAMES)
@pytest.mark.parametrize("backend", [name for name in ops.BACKENDS if name != "reference"])
def test_signature_is_the_reference_s(backend, op):
    ours, theirs = (
        inspect.signature(function) for function in (getattr(ops.load(backend), op), getattr(reference, op))
    )
    assert ours == theirs


@pytest.mark.parametrize("op", sorted(KERNELS))
def test_triton_has_a_kernel_of_its_own(op):
    function = getattr(ops.load("triton"), op)
    assert function.__name__ == op
    assert function is not getattr(reference, op)
