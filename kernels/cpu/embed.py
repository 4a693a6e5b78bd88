"""Rows of a table in panels, each value as its format says: a table that is the head as well is held once.

Row i is lane i % 16 of panel i // 16. Its bytes are collected in the order that they had in the file (pack.py), and
widened in float32 with the roundings of the gguf package.
"""

from functools import cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.cpu import numba_kernel as nk
from octavo.kernels.cpu.panels.formats import LAYOUTS, SIZES
from octavo.kernels.cpu.panels.pack import Panels
from octavo.kernels.cpu.vector_ir import LANES
from octavo.kernels.weights import Weight

DENSE_LAYOUTS = {"float32": ((32, 4),), "float16": ((16, 2),), "bfloat16": ((16, 4),)}
FORMATS = "float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"
F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K = range(len(FORMATS))


def embed(token_ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """Rows of a table: see the reference. An id that has no row gives NaN."""
    if not isinstance(weight, Panels):
        return reference.embed(token_ids, weight, dtype)
    rows = torch.empty(len(token_ids), weight.in_features, dtype=dtype, device=token_ids.device)
    fields, (block, block_size) = _fields_of(weight.format), SIZES[weight.format]
    kernel_of(weight.format)(
        nk.common_dtype(rows), rows.numel(), rows, token_ids.int().contiguous(), weight.data, fields, len(fields),
        len(rows), weight.in_features, weight.out_features, weight.data[0].numel(), block, block_size,
        FORMATS.index(weight.format),
    )  # fmt: skip
    return rows


def kernel_of(format: str) -> nk.Kernel:
    """The kernel that reads tables of a format."""
    number = FORMATS.index(format)
    return _embed_k_blocks if number >= Q4_K else _embed_blocks if number > BF16 else _embed_dense


@cache
def _fields_of(format: str) -> Tensor:
    """The fields of a row's block: bytes, and how many stay together in a panel; int64 `[fields, 2]`."""
    return torch.tensor((LAYOUTS | DENSE_LAYOUTS)[format], dtype=torch.int64, device="cpu")


@njit
def _collect(place, lane, fields, num_fields, raw):
    """The bytes of a lane of a block at `place`."""
    at, start = 0, place
    for field in range(num_fields):
        size, unit = fields[2 * field], fields[2 * field + 1]
        source = nk.byte_pointer(start)
        for k in range(size):
            raw[at + k] = source[(k // unit * LANES + lane) * unit + k % unit]
        at += size
        start += size * LANES


@njit(fastmath=False)
def _widen_dense(raw, format, values):
    """The values of a block, which are numbers of 4 or 2 bytes."""
    for k in range(values.size):
        if format == F32:
            values[k] = np.uint32(_number(raw, 4 * k) | (_number(raw, 4 * k + 2) << 16)).view(np.float32)
        elif format == F16:
            values[k] = _half(raw, 2 * k)
        else:
            values[k] = np.uint32(_number(raw, 2 * k) << 16).view(np.float32)


@njit(fastmath=False)
def _widen_blocks(raw, format, values):
    """The same for blocks of 32 whole numbers. https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h"""
    scale = _half(raw, 0)
    if format == Q8_0:
        for k in range(values.size):
            values[k] = scale * np.float32(np.int64(raw[2 + k]) - 128)  # in panels without a sign
        return
    has_least, has_fifth = format in (Q4_1, Q5_1), format >= Q5_0
    fifths = 4 if has_least else 2
    nibbles = fifths + 4 if has_fifth else fifths
    for k in range(values.size):
        pair = np.int64(raw[nibbles + k % 16])
        number = pair >> 4 if k >= 16 else pair & 15
        if has_fifth:
            number |= ((np.int64(raw[fifths + k // 8]) >> (k % 8)) & 1) << 4
        if has_least:
            values[k] = scale * np.float32(number) + _half(raw, 2)
        else:
            values[k] = scale * np.float32(number - (16 if has_fifth else 8))


@njit(fastmath=False)
def _widen_parts(raw, format, values):
    """The same for K-quants: eight parts of 32 values with scales of their own."""
    for part in range(8):
        for k in range(32):
            if format == Q6_K:
                half, quarter = part // 4, part % 4
                pair = np.int64(raw[64 * half + 32 * (quarter % 2) + k])
                low = pair >> 4 if quarter >= 2 else pair & 15
                high = (np.int64(raw[128 + 32 * half + k]) >> (2 * quarter)) & 3
                scale = np.int64(np.int8(raw[192 + 8 * half + 2 * quarter + k // 16]))
                values[32 * part + k] = _half(raw, 208) * np.float32(scale) * np.float32((low | (high << 4)) - 32)
                continue
            pair = np.int64(raw[(16 if format == Q4_K else 48) + 32 * (part // 2) + k])
            number = pair >> 4 if part % 2 else pair & 15
            if format == Q5_K:
                number |= ((np.int64(raw[16 + k]) >> part) & 1) << 4
            scale, least = _scale_and_minimum(raw, part)
            values[32 * part + k] = _half(raw, 0) * np.float32(scale) * np.float32(number) - _half(raw, 2) * np.float32(
                least
            )


@njit
def _scale_and_minimum(raw, part):
    """Two numbers of six bits, in twelve bytes from byte 4 on."""
    if part < 4:
        return np.int64(raw[4 + part]) & 63, np.int64(raw[8 + part]) & 63
    both = np.int64(raw[8 + part])
    scale = (both & 15) | (np.int64(raw[part]) >> 6 << 4)
    return scale, (both >> 4) | (np.int64(raw[4 + part]) >> 6 << 4)


@njit
def _number(raw, place):
    """Two bytes, the lower one first."""
    return np.int64(raw[place]) | (np.int64(raw[place + 1]) << 8)


@njit
def _half(raw, place):
    return nk.to_float32(np.int16(_number(raw, place)))


def _kernel(name, widen):
    """Make the kernel for formats whose blocks `widen` reads: one for all takes twice as long to compile."""

    def embed(arguments):
        (rows,) = nk.float_ptrs(arguments, 0, 1)
        (ids,) = nk.int32_ptrs(arguments, 1, 1)
        panels, fields, num_fields, count, dim, num_ids = nk.int_args(arguments, 2, 6)
        panel_size, block, block_size, format = nk.int_args(arguments, 8, 4)
        first, last = nk.thread_range(count)
        raw, values = np.empty(block_size // LANES, np.uint8), np.empty(block, np.float32)
        for i in range(first, last):
            token = np.int64(ids[i])
            is_known = 0 <= token < num_ids
            for start in range(0, dim, block):
                if is_known:
                    place = panels + token // LANES * panel_size + start // block * block_size
                    _collect(place, token % LANES, nk.int64_pointer(fields), num_fields, raw)
                    widen(raw, format, values)
                else:
                    values[:] = np.float32(np.nan)
                for k in range(min(block, dim - start)):
                    rows[i * dim + start + k] = nk.from_float32(values[k], rows[0])

    embed.__name__ = embed.__qualname__ = name  # of what is kept on disk
    return nk.cpu_kernel("viaa qqqqqqqq")(embed)


_embed_dense, _embed_blocks = _kernel("_embed_dense", _widen_dense), _kernel("_embed_blocks", _widen_blocks)
_embed_k_blocks = _kernel("_embed_k_blocks", _widen_parts)
