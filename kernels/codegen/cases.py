"""What codegen compiles: every kernel at the shapes of the known models, as calls of the public ops.

A case is a call on "meta" tensors, which have shapes, dtypes and strides but no memory: the launcher itself picks the
config, signature and constants, so what is compiled is what a GPU would run, and a launcher that looked at a tensor's
values would fail here. To add an op: write a generator of its calls in one dtype and name it in `CASES`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.triton import activation, attention, kv_cache, linear, norm, paged_attention, rope
from octavo.kernels.triton.sampling import lm_head_sample, penalties, top_logprobs
from octavo.kernels.triton.sampling import sample as sampling


@dataclass(frozen=True)
class Case:
    label: str
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    quick: bool = False  # part of the representative selection that every test run compiles


def meta(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def norm_calls(dtype: torch.dtype) -> Iterator[Case]:
    for dim in (768, 1024, 1280, 1600):  # GPT-2
        x, weight = meta(4096, dim, dtype=dtype), meta(dim, dtype=dtype)
        yield Case(f"layer_norm {dim}", norm.layer_norm, (x, weight, weight, 1e-5), quick=dim == 768)
        yield Case(f"add_layer_norm {dim}", norm.add_layer_norm, (x, x, weight, weight, 1e-5), quick=dim == 768)
    for dim in (576, 2048, 4096, 16384):  # SmolLM2-135M, Llama 3 1B, 8B, 405B
        x, weight = meta(4096, dim, dtype=dtype), meta(dim, dtype=dtype)
        yield Case(f"rms_norm {dim}", norm.rms_norm, (x, weight, 1e-5))
        yield Case(f"add_rms_norm {dim}", norm.add_rms_norm, (x, x, weight, 1e-5), quick=dim == 576)


def activation_calls(dtype: torch.dtype) -> Iterator[Case]:
    for dim in (1536, 8192, 14336):
        yield Case(f"silu_mul {dim}", activation.silu_mul, (meta(4096, 2 * dim, dtype=dtype),), quick=dim == 1536)


# num_heads, num_kv_heads, head_dim of SmolLM2-135M, Llama 3 1B and 8B, and a head as wide as they come
HEADS = ((9, 3, 64), (32, 8, 64), (32, 8, 128), (16, 8, 256))


def rope_calls(dtype: torch.dtype) -> Iterator[Case]:
    for num_heads, num_kv_heads, head_dim in HEADS:
        fused = meta(4096, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
        q, k = fused[:, :num_heads], fused[:, num_heads : num_heads + num_kv_heads]
        table = meta(8192, head_dim // 2, dtype=torch.float32)
        for interleaved in (False, True):
            label = f"rope {num_heads}:{num_kv_heads} x {head_dim}" + " interleaved" * interleaved
            yield Case(label, rope.rope, (q, k, meta(4096), table, table, interleaved), quick=num_heads == 9)


def write_kv_calls(dtype: torch.dtype) -> Iterator[Case]:
    for num_kv_heads, head_dim in ((12, 64), (3, 64), (8, 128)):
        new, cache = meta(64, num_kv_heads, head_dim, dtype=dtype), meta(512, 16, num_kv_heads, head_dim, dtype=dtype)
        label = f"write_kv {num_kv_heads} x {head_dim}"
        yield Case(label, kv_cache.write_kv, (new, new, cache, cache, meta(64)), quick=num_kv_heads == 3)


def attention_calls(dtype: torch.dtype) -> Iterator[Case]:
    for num_heads, num_kv_heads, head_dim in ((12, 12, 64), (9, 3, 64), (32, 32, 80), *HEADS[2:]):
        fused = meta(4096, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
        q, k, v = fused.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        cache = meta(512, 16, num_kv_heads, head_dim, dtype=dtype)
        paged = (q, cache, cache, meta(64, 256), meta(64), meta(65))
        heads, scale = f"{num_heads}:{num_kv_heads} x {head_dim}", head_dim**-0.5
        quick = (num_heads, head_dim) in ((12, 64), (32, 128))
        yield Case(f"causal {heads}", attention.causal_attention, (q, k, v, meta(9), 1024, scale), quick=quick)
        yield Case(f"paged prefill {heads}", paged_attention.paged_attention, (*paged, 512, scale), quick=quick)
        yield Case(f"paged decode {heads}", paged_attention.paged_attention, (*paged, 1, scale), quick=quick)


# out_features, in_features: GPT-2's four and its head, SmolLM2's wide and narrow ones, Llama 3 8B's, an odd pair
WEIGHTS = ((2304, 768), (768, 3072), (50257, 768), (1600, 1600), (960, 576), (576, 1536), (49152, 576), (4096, 14336))


def linear_calls(dtype: torch.dtype) -> Iterator[Case]:
    for out_features, in_features in WEIGHTS:
        weight, bias = meta(out_features, in_features, dtype=dtype), meta(out_features, dtype=dtype)
        every = out_features in (2304, 768, 50257)
        for num_tokens in (16, 32, 64, 256, 4096) if every else (16, 4096):
            x = meta(num_tokens, in_features, dtype=dtype)
            args: tuple[Any, ...] = (x, weight)
            if (out_features, in_features) == (2304, 768):
                args = (x, weight, bias, "gelu")
            elif (out_features, in_features) == (768, 3072):
                args = (x, weight, bias)
            label = f"linear {num_tokens} x {in_features} -> {out_features}"
            quick = (out_features == 768 and num_tokens != 32) or (out_features == 50257 and num_tokens in (16, 4096))
            yield Case(label, linear.linear, args, quick=quick)


def sampling_calls(dtype: torch.dtype) -> Iterator[Case]:
    floats, ids = meta(64, dtype=torch.float32), meta(64)
    seeds = meta(64, dtype=torch.int64)
    for vocab_size, dim in ((50257, 768), (49152, 576), (128256, 2048)):  # GPT-2, SmolLM2-135M, Llama 3 1B
        logits, quick = meta(64, vocab_size, dtype=dtype), vocab_size == 50257
        columns = (floats, ids, floats, floats, seeds, ids)
        said = (meta(64, vocab_size), meta(64, vocab_size, dtype=torch.bool))
        bias = (meta(64, 300), meta(64, 300, dtype=torch.float32))
        yield Case(f"sample {vocab_size}", sampling.sample, (logits, *columns), quick=quick)
        masked = (logits, *columns, meta(64, -(-vocab_size // 32)))
        yield Case(f"sample {vocab_size}, masked", sampling.sample, masked, quick=quick)
        yield Case(f"top_logprobs {vocab_size}", top_logprobs.top_logprobs, (logits, 20))
        yield Case(
            f"apply_penalties {vocab_size}", penalties.apply_penalties, (logits, *said, floats, floats, floats, *bias)
        )
        for num_seqs in (16, 32, 64):
            hidden, weight = meta(num_seqs, dim, dtype=dtype), meta(vocab_size, dim, dtype=dtype)
            draws = (floats[:num_seqs], seeds[:num_seqs], ids[:num_seqs])
            label = f"lm_head_sample {num_seqs} x {dim} -> {vocab_size}"
            yield Case(label, lm_head_sample.lm_head_sample, (hidden, weight, *draws), quick=quick and num_seqs == 16)


CASES: dict[str, Callable[[torch.dtype], Iterator[Case]]] = {
    "norm": norm_calls,
    "activation": activation_calls,
    "rope": rope_calls,
    "write_kv": write_kv_calls,
    "attention": attention_calls,
    "linear": linear_calls,
    "sampling": sampling_calls,
}
