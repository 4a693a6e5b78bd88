"""Decoder: the network of every family that the kit of parts.py makes up, shaped by a DecoderConfig."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from octavo.gpt.models.base import Embedding, LayerCache, Linear, Model, initialise
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.decoder_config import DecoderConfig
from octavo.gpt.models.parts import Block, Norm, Step, make_norm, soft_capped
from octavo.gpt.models.rope import RopeTables, rope_tables
from octavo.kernels.ops import REFERENCE, Ops


class Decoder(Model):
    config: DecoderConfig

    def __init__(self, config: DecoderConfig, ops: Ops = REFERENCE, seed: int = 0) -> None:
        super().__init__(config, ops)
        self.embed_tokens = Embedding(config.vocab_size, config.dim)
        if config.positions == "learned":
            self.embed_positions = Embedding(config.context_size + config.position_offset, config.dim)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = make_norm(config, is_there=True)
        if not config.tied_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size, config.head_bias)
        for name in ("cos", "sin", "local_cos", "local_sin"):
            self.register_buffer(name, None, persistent=False)
        self.embedding_scale = config.embedding_scale
        initialise(self, seed)

    def make_buffers(self, length: int | None = None) -> None:
        c, like = self.config, self.embed_tokens.like
        # Gemma was trained with the factor in the weights' own dtype: 55.5 in bfloat16, where it is 55.43.
        self.embedding_scale = torch.tensor(c.embedding_scale, dtype=like.dtype, device="cpu").item()
        kinds = {c.layer_type(i).rope for i in range(c.num_layers)} if c.positions == "rotary" else set()
        if "global" in kinds:
            tables = rope_tables(c.rotary_width, c.context_size, c.rope_theta, c.rope_scaling, length)
            self.cos, self.sin = (table.to(like.device) for table in tables)
        if "local" in kinds:
            tables = rope_tables(c.rotary_width, c.context_size, c.local_rope_theta, None, length)
            self.local_cos, self.local_sin = (table.to(like.device) for table in tables)

    def set_length(self, length: int) -> None:
        if self.config.rope_scaling is not None and self.config.rope_scaling.follows_length:
            self.make_buffers(length)

    @property
    def embedding(self) -> Embedding:
        return self.embed_tokens

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
        blocks = cast(list[Block], list(self.layers))
        residual = self._embedded(batch)
        x = blocks[0].attn_norm(residual, self.ops)
        norms: list[Norm] = [*(block.attn_norm for block in blocks[1:]), self.norm]
        for i, (block, next_norm) in enumerate(zip(blocks, norms, strict=True)):
            step = Step(batch, None if cache is None else cache[i], self._tables(i), self.ops)
            x, residual = block(x, residual, next_norm, step)
        return x

    def finish_logits(self, scores: Tensor) -> Tensor:
        if self.config.logit_scale != 1:
            scores = scores * self.config.logit_scale
        return soft_capped(scores, self.config.logit_softcap) if self.config.logit_softcap else scores

    @property
    def has_plain_head(self) -> bool:
        c = self.config
        return c.logit_scale == 1 and not c.logit_softcap and not c.head_bias

    def _embedded(self, batch: Batch) -> Tensor:
        x = self.embed_tokens(batch.token_ids, self.ops)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        if self.config.positions == "learned":
            x = x + self.embed_positions(batch.positions + self.config.position_offset, self.ops)
        return x

    def _tables(self, layer: int) -> RopeTables | None:
        """The rotary tables of a layer's kind; None where it has no positions of its own."""
        kind = self.config.layer_type(layer).rope
        if self.config.positions != "rotary" or kind == "none":
            return None
        return (self.cos, self.sin) if kind == "global" else (self.local_cos, self.local_sin)
