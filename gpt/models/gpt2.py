"""GPT-2: learned positions, LayerNorm, GELU (tanh), biases everywhere, a head that is usually the embedding.

Names are the checkpoint's (`wte wpe h.0.attn.c_attn ln_f`); weight matrices are `[out_features, in_features]`.
Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from octavo.gpt.models.base import LayerCache, LayerNorm, Linear, Model, attend, embedding, initialise
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.config import ModelConfig
from octavo.kernels.ops import REFERENCE, Ops


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.c_attn = Linear(config.dim, 3 * config.dim, bias=True)
        self.c_proj = Linear(config.dim, config.dim, bias=True)

    def forward(self, x: Tensor, batch: Batch, cache: LayerCache | None, ops: Ops) -> Tensor:
        q, k, v = self.c_attn(x, ops).view(len(x), 3, -1, self.head_dim).unbind(1)
        o = attend(ops, q, k, v, batch, cache, self.head_dim**-0.5)
        return self.c_proj(o.flatten(1), ops)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.dim, config.hidden_dim, bias=True)
        self.c_proj = Linear(config.hidden_dim, config.dim, bias=True)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return self.c_proj(self.c_fc(x, ops, activation="gelu"), ops)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)


class GPT2(Model):
    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE, seed: int = 0) -> None:
        super().__init__(config, ops)
        self.wte = embedding(config.vocab_size, config.dim)
        self.wpe = embedding(config.context_size, config.dim)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.dim, config.norm_eps)
        if not config.tied_head:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        initialise(self, seed)

    @property
    def embedding(self) -> nn.Embedding:
        return self.wte

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None) -> Tensor:
        blocks = cast(list[Block], list(self.h))
        residual = self.wte(batch.token_ids) + self.wpe(batch.positions)
        x = blocks[0].ln_1(residual, self.ops)
        norms = [*(block.ln_1 for block in blocks[1:]), self.ln_f]
        for i, (block, next_norm) in enumerate(zip(blocks, norms, strict=True)):
            x = block.attn(x, batch, cache and cache[i], self.ops)
            x, residual = block.ln_2.add(x, residual, self.ops)
            x = block.mlp(x, self.ops)
            x, residual = next_norm.add(x, residual, self.ops)
        return x
