"""Checks of arguments that several launchers share: each raises a ValueError of one line that names the argument.

Shapes, dtypes, devices and strides are known without waiting for a GPU. The contents of index tensors are not, so they
are read only where `values_are_readable` says so.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from triton import knobs

from octavo.kernels.triton.launch import MAX_HEAD_DIM
from octavo.kernels.weights import Weight

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_VOCAB_SIZE = 2**18  # the weights of so many ids, each at most 2^44, add up in 63 bits


def check_matrix(name: str, x: Tensor, layout: str) -> None:
    """ValueError unless x has two dimensions, in words `layout`, and a dtype that the kernels compute in."""
    if x.ndim != 2 or x.dtype not in FLOATS:
        raise ValueError(f"{name} must be {layout} in 16 or 32 bits, not {list(x.shape)} {x.dtype}")


def check_alike(like: Tensor, /, **tensors: Tensor | None) -> None:
    """ValueError unless these tensors, None where absent, have the dtype and device of `like` and contiguous rows."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise ValueError(f"{name} must be {like.dtype} on {like.device}, not {tensor.dtype} on {tensor.device}")
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must have a contiguous last dimension, not stride {tensor.stride(-1)}")


def check_tensor(
    name: str, x: Tensor, shape: Sequence[int], device: torch.device, *dtypes: torch.dtype, strided_rows: bool = False
) -> None:
    """ValueError unless x has that shape, that device and one of the dtypes, and is contiguous.

    With strided_rows only its last dimension must be contiguous.
    """
    if x.shape != shape or x.dtype not in dtypes or x.device != device:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{x.dtype} {list(x.shape)} on {x.device}"
        raise ValueError(f"{name} must be {expected} {list(shape)} on {device}, not {got}")
    if not (x.is_contiguous() or (strided_rows and x.stride(-1) == 1)):
        where = " in its last dimension" if strided_rows else ""
        raise ValueError(f"{name} must be contiguous{where}, not strided {x.stride()}")


def check_columns(rows: Tensor, dtypes: dict[str, torch.dtype], columns: tuple[Tensor, ...]) -> None:
    """ValueError unless each column is contiguous, of its dtype, and has a value for each of `rows` `[num_rows, ...]`.

    dtypes names the columns, in their order.
    """
    for (name, dtype), column in zip(dtypes.items(), columns, strict=True):
        check_tensor(name, column, rows.shape[:1], rows.device, dtype)


def dense_weight(x: Tensor, weight: Weight, rows: str) -> Tensor:
    """The weight; ValueError unless it is a dense `[rows, x.shape[1]]`, of the dtype and on the device of x."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a dense tensor, not {type(weight).__name__}, on backend triton")
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be [{rows}, {x.shape[1]}], not {list(weight.shape)}")
    check_alike(x, weight=weight)
    return weight


def check_logits(logits: Tensor) -> None:
    """ValueError unless logits are `[num_rows, vocab_size]` in 16 or 32 bits with contiguous rows."""
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= MAX_VOCAB_SIZE:
        raise ValueError(f"logits must be [num_rows, at most {MAX_VOCAB_SIZE}], not {list(logits.shape)}")
    if logits.dtype not in FLOATS:
        raise ValueError(f"logits must be float32, float16 or bfloat16, not {logits.dtype}")
    if logits.stride(1) != 1:
        raise ValueError(f"logits must have contiguous rows, not stride {logits.stride(1)}")


def values_are_readable(index: Tensor) -> bool:
    """Whether the contents of index tensors may be checked; on a GPU that synchronises: only under TRITON_DEBUG=1."""
    return index.device.type == "cpu" or (index.is_cuda and knobs.runtime.debug)


def check_heads(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str], scale: float) -> None:
    """ValueError unless q, k and v (or the caches of those names) agree and the kernels can take them."""
    if q.ndim != 3:
        raise ValueError(f"q must be [num_tokens, num_heads, head_dim], not {tuple(q.shape)}")
    num_heads, head_dim = q.shape[1:]
    if q.dtype not in FLOATS:
        raise ValueError(f"q must be float32, float16 or bfloat16, not {q.dtype}")
    if head_dim % 4 or not 4 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim of q must be a multiple of 4 up to {MAX_HEAD_DIM}, not {head_dim}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    if v.shape != k.shape:
        raise ValueError(f"{names[1]} must be shaped as {names[0]} {tuple(k.shape)}, not {tuple(v.shape)}")
    if k.shape[-1] != head_dim or k.shape[-2] == 0 or num_heads % k.shape[-2]:
        raise ValueError(
            f"{names[0]} must have head_dim {head_dim} and a number of heads that divides {num_heads}, "
            f"not {tuple(k.shape[-2:])}"
        )
    check_alike(q, **{"q": q, names[0]: k, names[1]: v})


def check_kind(q: Tensor, window: int, softcap: float, sinks: Tensor | None) -> None:
    """ValueError unless window, softcap and sinks are what attention of q `[num_tokens, num_heads, head_dim]` takes."""
    if window < 0:
        raise ValueError(f"window must be 0 or more, not {window}")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"softcap must be 0 or positive, not {softcap}")
    if sinks is not None:
        check_tensor("sinks", sinks, q.shape[1:2], q.device, torch.float32)


def check_bounds(name: str, cu_seqlens: Tensor, longest: int, limit_name: str, num_tokens: int) -> None:
    """Where the values may be read: ValueError unless the sequences follow each other within q and the stated limit."""
    if not values_are_readable(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(bounds)]
    if bounds[0] != 0 or min(lengths, default=0) < 0 or bounds[-1] > num_tokens:
        raise ValueError(f"{name} must rise from 0 to at most {num_tokens}, the rows of q, not {bounds}")
    if max(lengths, default=0) > longest:
        raise ValueError(f"{limit_name} {longest} is less than the longest sequence of {name}, {max(lengths)}")
