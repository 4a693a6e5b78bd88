"""A backend to train on: forward passes have the bits of its kernels, backward passes are those of the reference.

What an engine generates on a backend and what a training step scores on `trainable(backend)` are then the same numbers
to the bit, as reinforcement learning needs them. A backward pass runs the reference's op again: it costs that op's
forward pass besides, and its gradients are PyTorch's.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.ops import REFERENCE, Ops
from octavo.kernels.weights import Weight

FROM_REFERENCE = (
    *("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "rope", "silu_mul", "gelu_mul", "linear"),
    "causal_attention",
)


def trainable(ops: Ops) -> Ops:
    """The ops of a dense forward pass made differentiable; the others are left. Weights stay dense: pack none."""

    def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
        return ops.linear(x, ops.pack(weight) if isinstance(weight, Tensor) else weight, bias, activation)

    kernels = {name: getattr(ops, name) for name in FROM_REFERENCE} | {"linear": linear}
    functions: dict[str, Any] = {
        name: partial(_apply, kernel, getattr(REFERENCE, name)) for name, kernel in kernels.items()
    }
    return replace(ops, **functions)


def _apply(kernel: Callable[..., Any], twin: Callable[..., Any], *args: Any) -> Any:
    return _Op.apply(kernel, twin, *args)


class _Op(torch.autograd.Function):
    """A kernel's values, with the gradients of its twin."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable[..., Any], twin: Callable[..., Any], *args: Any) -> Any:
        ctx.twin = twin
        ctx.save_for_backward(*(arg for arg in args if isinstance(arg, Tensor)))
        ctx.others = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.is_tensor = [isinstance(arg, Tensor) for arg in args]
        return kernel(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = iter(ctx.saved_tensors), ctx.needs_input_grad[2:]
        args = [next(saved).detach() if there else arg for there, arg in zip(ctx.is_tensor, ctx.others, strict=True)]
        inputs = [arg.requires_grad_() for arg, wanted in zip(args, needed, strict=True) if wanted]
        with torch.enable_grad():
            outputs = ctx.twin(*args)
        found = iter(torch.autograd.grad(outputs, inputs, grads if isinstance(outputs, tuple) else grads[0]))
        return None, None, *(next(found) if wanted else None for wanted in needed)
