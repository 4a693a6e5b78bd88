"""Llama: rotary positions, RMSNorm, SwiGLU, grouped-query attention (https://arxiv.org/abs/2302.13971).

q, k and v are one projection, gate and up another, so that a step reads each weight in few, wide products.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from octavo.gpt.models.base import LayerCache, Linear, Model, RMSNorm, attend, embedding, initialise
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.config import ModelConfig, RopeScaling
from octavo.kernels.ops import REFERENCE, Ops

RopeTables = tuple[Tensor, Tensor]  # cos, sin: [context_size, head_dim / 2] float32


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, bias = config.num_heads, config.attention_bias
        self.qkv_proj = Linear(config.dim, (heads + 2 * config.num_kv_heads) * config.head_dim, bias)
        self.o_proj = Linear(heads * config.head_dim, config.dim, bias)

    def forward(self, x: Tensor, batch: Batch, cache: LayerCache | None, tables: RopeTables, ops: Ops) -> Tensor:
        c = self.config
        heads = self.qkv_proj(x, ops).view(len(x), -1, c.head_dim)
        q, k, v = heads.split_with_sizes((c.num_heads, c.num_kv_heads, c.num_kv_heads), 1)
        q, k = ops.rope(q, k, batch.positions, *tables, c.rope_interleaved)
        o = attend(ops, q, k, v, batch, cache, c.head_dim**-0.5)
        return self.o_proj(o.flatten(1), ops)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.dim, 2 * config.hidden_dim, config.mlp_bias)
        self.down_proj = Linear(config.hidden_dim, config.dim, config.mlp_bias)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return self.down_proj(ops.silu_mul(self.gate_up_proj(x, ops)), ops)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)


class Llama(Model):
    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE, seed: int = 0) -> None:
        super().__init__(config, ops)
        self.embed_tokens = embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied_head:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        initialise(self, seed)

    def make_buffers(self) -> None:
        device = self.norm.weight.device
        self.cos, self.sin = (table.to(device) for table in rope_tables(self.config))

    @property
    def embedding(self) -> nn.Embedding:
        return self.embed_tokens

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None) -> Tensor:
        blocks = cast(list[Block], list(self.layers))
        residual = self.embed_tokens(batch.token_ids)
        x = blocks[0].input_layernorm(residual, self.ops)
        norms = [*(block.input_layernorm for block in blocks[1:]), self.norm]
        for i, (block, next_norm) in enumerate(zip(blocks, norms, strict=True)):
            x = block.self_attn(x, batch, cache and cache[i], (self.cos, self.sin), self.ops)
            x, residual = block.post_attention_layernorm.add(x, residual, self.ops)
            x = block.mlp(x, self.ops)
            x, residual = next_norm.add(x, residual, self.ops)
        return x


def rope_tables(config: ModelConfig) -> RopeTables:
    """cos and sin of every position's angles, on the CPU: the same bits for every device."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = _stretch(frequencies, config.rope_scaling)
    angles = torch.outer(torch.arange(config.context_size).float(), frequencies)
    return angles.cos(), angles.sin()


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies divided by the factor, fast ones kept, a ramp between; or what `kind` says instead."""
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors)
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the original context
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(slow, frequencies, ramp.clamp(0, 1))
