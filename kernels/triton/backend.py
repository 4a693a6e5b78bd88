"""The triton backend: every op with a Triton kernel; the reference's `pack` is left, for dense weights."""

from dataclasses import replace

from octavo.kernels.ops import REFERENCE
from octavo.kernels.triton.activation import gelu_mul, silu_mul
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.triton.kv_cache import write_kv
from octavo.kernels.triton.linear import linear
from octavo.kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from octavo.kernels.triton.paged_attention import paged_attention
from octavo.kernels.triton.rope import rope
from octavo.kernels.triton.sampling.lm_head_sample import lm_head_sample
from octavo.kernels.triton.sampling.penalties import apply_penalties
from octavo.kernels.triton.sampling.sample import sample
from octavo.kernels.triton.sampling.top_logprobs import top_logprobs

TRITON = replace(
    REFERENCE,
    name="triton",
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    add_layer_norm=add_layer_norm,
    add_rms_norm=add_rms_norm,
    rope=rope,
    silu_mul=silu_mul,
    gelu_mul=gelu_mul,
    linear=linear,
    write_kv=write_kv,
    causal_attention=causal_attention,
    paged_attention=paged_attention,
    apply_penalties=apply_penalties,
    sample=sample,
    lm_head_sample=lm_head_sample,
    top_logprobs=top_logprobs,
    formats=frozenset(),
).with_syncs()
