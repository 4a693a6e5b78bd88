"""Single ops as PyTorch and FlashInfer have them, under our signatures. What they prepare once is not timed."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from octavo.bench.op_cases import Arguments, Case

Prepared = Callable[[], Any]  # the op, ready to be called and timed


def torch_op(case: Case, arguments: Arguments) -> Prepared | None:
    """PyTorch's own fused kernel where there is one besides what the reference calls."""
    if case.op == "causal_attention":
        q, k, v, _, _, scale = arguments
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        return lambda: (
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
            .squeeze(0)
            .transpose(0, 1)
        )
    if case.op == "paged_attention":
        q, k_cache, v_cache, table, lens, _, _, scale = arguments
        length, index = int(lens[0]), table.long()
        rows = q.unsqueeze(2)  # one query a sequence: [num_seqs, num_heads, 1, head_dim]
        grouped = q.shape[1] != k_cache.shape[2]

        def gather_and_attend() -> torch.Tensor:
            k, v = (cache[index].flatten(1, 2)[:, :length].transpose(1, 2) for cache in (k_cache, v_cache))
            return F.scaled_dot_product_attention(rows, k, v, scale=scale, enable_gqa=grouped).squeeze(2)

        return gather_and_attend
    return None


def flashinfer_op(case: Case, arguments: Arguments) -> Prepared | None:
    """FlashInfer's kernel, its plan made beforehand; None where it has none or is not installed."""
    if find_spec("flashinfer") is None:
        return None
    flashinfer = import_module("flashinfer")
    if case.op == "rms_norm":
        x, weight, eps = arguments
        return lambda: flashinfer.rmsnorm(x, weight, eps)
    if case.op == "silu_mul":
        return lambda: flashinfer.silu_and_mul(arguments[0])
    if case.op == "causal_attention":
        q, k, v, _, _, scale = arguments
        return lambda: flashinfer.single_prefill_with_kv_cache(q, k, v, causal=True, sm_scale=scale)
    if case.op == "paged_attention":
        return _flashinfer_decode(flashinfer, arguments)
    return None


def _flashinfer_decode(flashinfer: Any, arguments: Arguments) -> Prepared:
    q, k_cache, v_cache, table, lens, _, _, scale = arguments
    block_size = k_cache.shape[1]
    used = -(-lens // block_size)
    ends = torch.cat([used.new_zeros(1), used.cumsum(0)]).int()
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        ends, table.flatten().int(), ((lens - 1) % block_size + 1).int(), q.shape[1], k_cache.shape[2], q.shape[2],
        block_size, q_data_type=q.dtype, kv_data_type=k_cache.dtype, sm_scale=scale,
    )  # fmt: skip
    return lambda: wrapper.run(q, (k_cache, v_cache))


PEER_OPS: dict[str, Callable[[Case, Arguments], Prepared | None]] = {"torch": torch_op, "flashinfer": flashinfer_op}
