"""bias_gelu and silu_mul: the two feed-forward activations, each one pass over memory.

    bias_gelu  gelu(x + bias), tanh form: s * sigmoid(2 u), u = sqrt(2 / pi) (s + 0.044715 s^3), s = x + bias
    silu_mul   gate * sigmoid(gate) * up, for gate and up side by side in one row

One program computes a stretch of one token's row in float32 and rounds once. Both sigmoids are written with exp of a
value that is never positive, so nothing overflows. x and gate_up may have strided rows; of every tensor only the last
dimension must be contiguous. https://arxiv.org/abs/1606.08415
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch


@triton.jit
def _sigmoid(x):
    decay = tl.exp2(-1.4426950408889634 * tl.abs(x))  # exp(-|x|)
    return tl.where(x >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def _bias_gelu_kernel(y_ptr, x_ptr, bias_ptr, stride_x, HIDDEN_DIM: tl.constexpr, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = column < HIDDEN_DIM
    x = tl.load(x_ptr + token * stride_x + column, live, 0.0).to(tl.float32)  # [TILE]
    x += tl.load(bias_ptr + column, live, 0.0).to(tl.float32)
    u = x * tl.fma(x * x, 0.044715 * 0.7978845608028654, 0.7978845608028654)
    y = x * _sigmoid(2.0 * u)
    tl.store(y_ptr + token * HIDDEN_DIM + column, y.to(y_ptr.dtype.element_ty), live)


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


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of `x + bias` in its tanh form, a new tensor.

    x `[num_tokens, hidden_dim]`, bias `[hidden_dim]`, of one dtype (float32, float16, bfloat16). ValueError otherwise.
    """
    _check("x", x)
    num_tokens, hidden_dim = x.shape
    if bias.shape != x.shape[1:] or bias.dtype != x.dtype or bias.device != x.device or not bias.is_contiguous():
        raise ValueError(
            f"bias must be [{hidden_dim}] {x.dtype} on {x.device}, not {list(bias.shape)} {bias.dtype} on {bias.device}"
        )
    y = torch.empty(num_tokens, hidden_dim, dtype=x.dtype, device=x.device)
    if y.numel():
        row = launch.elementwise(x.device, hidden_dim)
        grid = (num_tokens, triton.cdiv(hidden_dim, row.tiles["TILE"]))
        _bias_gelu_kernel[grid](y, x, bias, x.stride(0), HIDDEN_DIM=hidden_dim, **row.kwargs)
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection, a new tensor.

    `[num_tokens, 2 * hidden_dim]` -> `[num_tokens, hidden_dim]`, float32, float16 or bfloat16. ValueError otherwise.
    """
    _check("gate_up", gate_up)
    num_tokens, hidden_dim = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * hidden_dim], not {list(gate_up.shape)}")
    y = torch.empty(num_tokens, hidden_dim, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        row = launch.elementwise(gate_up.device, hidden_dim)
        grid = (num_tokens, triton.cdiv(hidden_dim, row.tiles["TILE"]))
        _silu_mul_kernel[grid](y, gate_up, gate_up.stride(0), HIDDEN_DIM=hidden_dim, **row.kwargs)
    return y


def _check(name: str, x: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} must be 2-D in 16 or 32 bits, not {list(x.shape)} {x.dtype}")
    if x.stride(-1) != 1:
        raise ValueError(f"{name} must have a contiguous last dimension, not stride {x.stride(-1)}")
