"""The cpu backend: the reference with what gains from knowing that it runs on a CPU."""

from dataclasses import replace

from octavo.kernels.cpu.activation import gelu_mul, silu_mul
from octavo.kernels.cpu.attention.ops import causal_attention, paged_attention
from octavo.kernels.cpu.embed import embed
from octavo.kernels.cpu.graph import capture
from octavo.kernels.cpu.kv_cache import write_kv
from octavo.kernels.cpu.linear import linear, pack
from octavo.kernels.cpu.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from octavo.kernels.cpu.panels.formats import SIZES
from octavo.kernels.cpu.rope import rope
from octavo.kernels.cpu.sample import lm_head_sample, sample, top_logprobs
from octavo.kernels.ops import REFERENCE
from octavo.kernels.weights import BLOCK_FORMATS

CPU = replace(
    REFERENCE,
    name="cpu",
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    add_layer_norm=add_layer_norm,
    add_rms_norm=add_rms_norm,
    rope=rope,
    silu_mul=silu_mul,
    gelu_mul=gelu_mul,
    pack=pack,
    linear=linear,
    embed=embed,
    write_kv=write_kv,
    causal_attention=causal_attention,
    paged_attention=paged_attention,
    sample=sample,
    lm_head_sample=lm_head_sample,
    top_logprobs=top_logprobs,
    capture=capture,
    formats=frozenset(BLOCK_FORMATS.keys() & SIZES.keys()),
    keeps_blocks=True,
).with_syncs("sample", "lm_head_sample")
