"""silu_mul: the feed-forward activation, `gate * sigmoid(gate) * up`, in one pass over memory.

gate and up lie side by side in one row, which may be strided; its values are contiguous. One program computes a stretch
of one token's row in float32 and rounds once. The sigmoid is written with exp of a value that is never positive, so
nothing overflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_alike, check_matrix


@triton.jit
def _sigmoid(x):
    decay = tl.exp2(-1.4426950408889634 * tl.abs(x))  # exp(-|x|)
    return tl.where(x >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def _silu_mul_kernel(y_ptr, gate_up_ptr, stride_gate_up, HIDDEN_DIM: tl.constexpr, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = column < HIDDEN_DIM
    gate_ptrs = gate_up_ptr + token * stride_gate_up + column
    gate = tl.load(gate_ptrs, live, 0.0).to(tl.float32)  # [TILE]
    up = tl.load(gate_ptrs + HIDDEN_DIM, live, 0.0).to(tl.float32)
    y = gate * _sigmoid(gate) * up
    tl.store(y_ptr + token * HIDDEN_DIM + column, y.to(y_ptr.dtype.element_ty), live)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection, a new tensor.

    `[num_tokens, 2 * intermediate_dim]` -> `[num_tokens, intermediate_dim]`, float32, float16 or bfloat16. ValueError
    otherwise.
    """
    check_matrix("gate_up", gate_up, "2-D")
    check_alike(gate_up, gate_up=gate_up)
    num_tokens, intermediate_dim = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * intermediate_dim], not {list(gate_up.shape)}")
    y = torch.empty(num_tokens, intermediate_dim, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        config = launch.elementwise(gate_up.device, intermediate_dim)
        grid = (num_tokens, triton.cdiv(intermediate_dim, config["TILE"]))
        _silu_mul_kernel[grid](y, gate_up, gate_up.stride(0), HIDDEN_DIM=intermediate_dim, **config)
    return y
