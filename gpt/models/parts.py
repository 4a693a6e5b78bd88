"""The kit of parts that decoder-only families are put together from: norms, attention, feed-forwards, blocks.

q, k and v are one projection, gate and up another, so that a step reads each weight in few, wide products.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from octavo.gpt.models.base import LayerCache, LayerNorm, Linear, RMSNorm, attend
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.rope import RopeTables
from octavo.kernels.ops import Ops


class Step(NamedTuple):
    """What a layer reads in one forward step beside its input and its weights."""

    batch: Batch
    cache: LayerCache | None
    tables: RopeTables | None  # None: no rotary positions
    ops: Ops


class NoNorm(nn.Module):
    """In the place of a norm that a family leaves out."""

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return x

    def add(self, x: Tensor, residual: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, total


Norm = RMSNorm | LayerNorm | NoNorm


def make_norm(config: DecoderConfig, is_there: bool, dim: int | None = None) -> Norm:
    """A norm of the family's kind over `dim` values, the residual stream's where it is left out."""
    if not is_there:
        return NoNorm()
    dim = config.dim if dim is None else dim
    if config.norm == "rms":
        return RMSNorm(dim, config.norm_eps)
    return LayerNorm(dim, config.norm_eps, config.norm_bias)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(config.dim, (q_rows, kv_rows, kv_rows), config.qkv_bias)
        self.o_proj = Linear(q_rows, config.dim, config.o_bias, ends_branch=True)
        whole = config.qk_norm == "projection"
        self.norm_widths = (q_rows, kv_rows) if whole else (config.head_dim, config.head_dim)
        self.q_norm, self.k_norm = (make_norm(config, bool(config.qk_norm), width) for width in self.norm_widths)
        self.scale = config.attention_scale or config.head_dim**-0.5
        self.window = config.window(layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        c = self.config
        heads = self.qkv_proj(x, step.ops).view(len(x), -1, c.head_dim)
        q, k, v = heads.split_with_sizes((c.num_heads, c.num_kv_heads, c.num_kv_heads), 1)
        if c.qk_norm:
            q, k = self._normalised(q, k, step.ops)
        if step.tables is not None:
            q, k = step.ops.rope(q, k, step.batch.positions, *step.tables, c.rope_interleaved)
        kind = self.window, c.attention_softcap
        o = attend(step.ops, q, k, v, step.batch, step.cache, self.scale, *kind)
        return self.o_proj(o.flatten(1), step.ops)

    def _normalised(self, q: Tensor, k: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Each of both normalised by groups of values, a head or all heads of a token."""
        q_width, k_width = self.norm_widths
        q, k = self.q_norm(_grouped(q, q_width), ops), self.k_norm(_grouped(k, k_width), ops)
        return _grouped(q, self.config.head_dim), _grouped(k, self.config.head_dim)


def _grouped(x: Tensor, width: int) -> Tensor:
    """The values of each token, `[num_tokens, ...]`, in groups: `[num_tokens, groups, width]`."""
    return x.flatten(1).unflatten(1, (-1, width))


class GatedMLP(nn.Module):
    """`down(activation(gate) * up)` (GLU variants, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_up_proj = Linear(config.dim, (config.intermediate_dim, config.intermediate_dim), config.mlp_bias)
        self.down_proj = Linear(config.intermediate_dim, config.dim, config.mlp_bias, ends_branch=True)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        multiply = {"silu": ops.silu_mul, "gelu": ops.gelu_mul}[self.activation]
        return self.down_proj(multiply(self.gate_up_proj(x, ops)), ops)


class PlainMLP(nn.Module):
    """`down(activation(up))`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up_proj = Linear(config.dim, config.intermediate_dim, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_dim, config.dim, config.mlp_bias, ends_branch=True)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return self.down_proj(self.up_proj(x, ops, self.activation), ops)


class Block(nn.Module):
    """One layer: attention and feed-forward, each a branch of the residual stream, with the norms that there are."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.is_parallel, self.scale = config.block == "parallel", config.residual_scale
        self.attn_norm = make_norm(config, config.pre_norm)
        self.self_attn = Attention(config, layer)
        self.attn_post_norm = make_norm(config, config.post_norm)
        self.mlp_norm = make_norm(config, config.pre_norm and not config.shared_norm)
        self.mlp = GatedMLP(config) if config.gated else PlainMLP(config)
        self.mlp_post_norm = make_norm(config, config.post_norm)

    def forward(self, x: Tensor, residual: Tensor, next_norm: Norm, step: Step) -> tuple[Tensor, Tensor]:
        """From the normalised input and the residual stream to the next block's, which are what `next_norm` makes."""
        a = self.attn_post_norm(self.self_attn(x, step), step.ops)
        if self.is_parallel:
            beside = x if isinstance(self.mlp_norm, NoNorm) else self.mlp_norm(residual, step.ops)
            return next_norm.add(self._scaled(a + self._feed(beside, step.ops)), residual, step.ops)
        x, residual = self.mlp_norm.add(self._scaled(a), residual, step.ops)
        return next_norm.add(self._scaled(self._feed(x, step.ops)), residual, step.ops)

    def _feed(self, x: Tensor, ops: Ops) -> Tensor:
        return self.mlp_post_norm(self.mlp(x, ops), ops)

    def _scaled(self, branch: Tensor) -> Tensor:
        return branch if self.scale == 1 else branch * self.scale


def soft_capped(logits: Tensor, cap: float) -> Tensor:
    """`cap * tanh(logits / cap)` of `[n, vocab_size]` (https://arxiv.org/abs/2408.00118).

    One row at a time, because PyTorch rounds tanh otherwise at the end of a tensor than in its middle: a row's bits
    would depend on how many there are.
    """
    return torch.stack([torch.tanh(row / cap) * cap for row in logits]) if len(logits) else logits
