"""Single ops of PyTorch, flash-attn and FlashInfer under Octavo's signatures; preparations are not timed."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from octavo.bench.measuring.op_cases import Arguments, Case

Prepared = Callable[[], Any]  # the op, ready to be called and timed


def torch_op(case: Case, arguments: Arguments) -> Prepared | None:
    """The call of a PyTorch user; None where the reference makes the same one."""
    if case.op == "causal_attention":
        return partial(_sdpa, *_dense(arguments), arguments[-1])
    if case.op == "paged_attention":
        return _gather_and_attend(arguments)
    if case.op == "lm_head_sample" and case.shape.startswith("greedy"):
        hidden, weight, *_ = arguments
        return lambda: F.linear(hidden, weight).argmax(-1).int()
    return None


def sdpa_op(backend: SDPBackend, case: Case, arguments: Arguments) -> Prepared | None:
    """One of the kernels behind PyTorch's attention, on CUDA, for types it has."""
    q = arguments[0]
    if case.op != "causal_attention" or not q.is_cuda or q.dtype == torch.float32:
        return None

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return _sdpa(*_dense(arguments), arguments[-1])

    return call


def _dense(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the one sequence, `[1, heads, tokens, head_dim]`."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in arguments[:3])
    return q, k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return o.squeeze(0).transpose(0, 1)


def _gather_and_attend(arguments: Arguments) -> Prepared | None:
    """Gathers each sequence's blocks, then attends in one call; None unless all contexts have one length."""
    q, k_cache, v_cache, table, lens, _, _, scale = arguments
    length, index = int(lens[0]), table.long()
    if not bool((lens == length).all()):
        return None
    rows = q.unsqueeze(2)  # one query a sequence: [num_seqs, num_heads, 1, head_dim]
    grouped = q.shape[1] != k_cache.shape[2]

    def call() -> Tensor:
        k, v = (cache[index].flatten(1, 2)[:, :length].transpose(1, 2) for cache in (k_cache, v_cache))
        return F.scaled_dot_product_attention(rows, k, v, scale=scale, enable_gqa=grouped).squeeze(2)

    return call


def flash_attention_op(case: Case, arguments: Arguments) -> Prepared | None:
    """flash-attn's kernel; None where it has none or is not installed. Of pages it takes those of 256 tokens only."""
    if case.op != "causal_attention" or arguments[0].dtype == torch.float32 or find_spec("flash_attn") is None:
        return None
    rows, scale = [x.unsqueeze(0) for x in arguments[:3]], arguments[-1]
    attend = import_module("flash_attn").flash_attn_func
    return lambda: attend(*rows, softmax_scale=scale, causal=True).squeeze(0)


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
    blocks = table[torch.arange(table.shape[1], device=q.device) < used.unsqueeze(1)]  # in order, without padding
    wrapper.plan(
        ends, blocks, ((lens - 1) % block_size + 1).int(), q.shape[1], k_cache.shape[2], q.shape[2],
        block_size, q_data_type=q.dtype, kv_data_type=k_cache.dtype, sm_scale=scale,
    )  # fmt: skip
    return lambda: wrapper.run(q, (k_cache, v_cache))


PEER_OPS: dict[str, Callable[[Case, Arguments], Prepared | None]] = {
    "torch": torch_op,
    "torch flash": partial(sdpa_op, SDPBackend.FLASH_ATTENTION),
    "torch cudnn": partial(sdpa_op, SDPBackend.CUDNN_ATTENTION),
    "flash-attn": flash_attention_op,
    "flashinfer": flashinfer_op,
}
