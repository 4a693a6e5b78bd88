"""New keys and values into their slots of the paged cache, on a CPU."""

from torch import Tensor

from octavo.kernels.cpu import numba_kernel as nk


@nk.cpu_kernel("vvvv i qqqq")
def _write_kv(fields):
    k, v, k_cache, v_cache = nk.float_ptrs(fields, 0, 4)
    (slots,) = nk.int32_ptrs(fields, 4, 1)
    rows, width, k_stride, v_stride = nk.int_args(fields, 5, 4)
    first, last = nk.thread_range(rows)
    for r in range(first, last):
        if slots[r] >= 0:
            place = slots[r] * width
            for i in range(width):
                k_cache[place + i] = k[r * k_stride + i]
                v_cache[place + i] = v[r * v_stride + i]


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing: see the reference."""
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("k_cache and v_cache must be contiguous")
    k, v, dtype = nk.rows_of_heads(k), nk.rows_of_heads(v), nk.common_dtype(k, v, k_cache, v_cache)
    width = k.shape[1] * k.shape[2]
    _write_kv(dtype, k.numel(), k, v, k_cache, v_cache, slot_mapping.int(), len(k), width, k.stride(0), v.stride(0))
