"""silu_mul and gelu_mul: the gated activation of a feed-forward layer, `f(gate) * up`, in one pass over memory.

gate and up lie side by side in one row, which may be strided; its values are contiguous. One program computes a stretch
of one token's row in float32 and rounds once. Sigmoids are written with exp of a value that is never positive, so
nothing overflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_alike, check_matrix


@triton.jit
def silu(x):
    decay = tl.exp2(-1.4426950408889634 * tl.abs(x))  # exp(-|x|)
    return x * (tl.where(x >= 0, 1.0, decay) / (1.0 + decay))


@triton.jit
def gelu(x):
    """The tanh form."""
    u = x * tl.fma(x * x, 0.044715 * 0.7978845608028654, 0.7978845608028654)
    decay = tl.exp2(-2.8853900817779268 * tl.abs(u))  # exp(-2 |u|)
    return x * (tl.where(u >= 0, 1.0, decay) / (1.0 + decay))


@triton.jit
def _gated_kernel(
    y_ptr, gate_up_ptr, stride_gate_up, ACTIVATION: tl.constexpr, HIDDEN_DIM: tl.constexpr, TILE: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = column < HIDDEN_DIM
    gate_ptrs = gate_up_ptr + token * stride_gate_up + column
    gate = tl.load(gate_ptrs, mask, 0.0).to(tl.float32)  # [TILE]
    up = tl.load(gate_ptrs + HIDDEN_DIM, mask, 0.0).to(tl.float32)
    y = (gelu(gate) if ACTIVATION == "gelu" else silu(gate)) * up
    tl.store(y_ptr + token * HIDDEN_DIM + column, y.to(y_ptr.dtype.element_ty), mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection, a new tensor.

    `[num_tokens, 2 * intermediate_dim]` -> `[num_tokens, intermediate_dim]`, float32, float16 or bfloat16. ValueError
    otherwise.
    """
    return _gate(gate_up, "silu")


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up` of a fused projection, GELU in its tanh form; shapes and errors as in `silu_mul`."""
    return _gate(gate_up, "gelu")


def _gate(gate_up: Tensor, activation: str) -> Tensor:
    check_matrix("gate_up", gate_up, "2-D")
    check_alike(gate_up, gate_up=gate_up)
    num_tokens, intermediate_dim = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * intermediate_dim], not {list(gate_up.shape)}")
    y = torch.empty(num_tokens, intermediate_dim, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        config = launch.elementwise(gate_up.device, intermediate_dim)
        grid = (num_tokens, triton.cdiv(intermediate_dim, config["TILE"]))
        _gated_kernel[grid](y, gate_up, gate_up.stride(0), ACTIVATION=activation, HIDDEN_DIM=intermediate_dim, **config)
    return y
