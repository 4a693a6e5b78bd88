"""GPT-2: learned positions, LayerNorm, GELU (tanh), biases everywhere, a head that is usually the embedding.

Names are the checkpoint's (`wte wpe h.0.attn.c_attn ln_f`); weight matrices are `[out_features, in_features]`.
Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from octavo.gpt.models.base import Embedding, LayerCache, LayerNorm, Linear, Model, attend, initialise
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader, TensorSource, gguf_shape
from octavo.gpt.models.family import Family
from octavo.kernels.ops import REFERENCE, Ops


@dataclass(frozen=True, kw_only=True)
class GPT2Config(ModelConfig):
    family = "gpt2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim != self.num_heads * self.head_dim:
            raise ValueError(f"dim ({self.dim}) must be num_heads x head_dim ({self.num_heads} x {self.head_dim})")


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.c_attn = Linear(config.dim, 3 * config.dim, bias=True)
        self.c_proj = Linear(config.dim, config.dim, bias=True, ends_branch=True)

    def forward(self, x: Tensor, batch: Batch, cache: LayerCache | None, ops: Ops) -> Tensor:
        q, k, v = self.c_attn(x, ops).view(len(x), 3, -1, self.head_dim).unbind(1)
        o = attend(ops, q, k, v, batch, cache, self.head_dim**-0.5)
        return self.c_proj(o.flatten(1), ops)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.dim, config.intermediate_dim, bias=True)
        self.c_proj = Linear(config.intermediate_dim, config.dim, bias=True, ends_branch=True)

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
        self.wte = Embedding(config.vocab_size, config.dim)
        self.wpe = Embedding(config.context_size, config.dim)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.dim, config.norm_eps)
        if not config.tied_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        initialise(self, seed)

    @property
    def embedding(self) -> Embedding:
        return self.wte

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
        blocks = cast(list[Block], list(self.h))
        residual = self.wte(batch.token_ids, self.ops) + self.wpe(batch.positions, self.ops)
        x = blocks[0].ln_1(residual, self.ops)
        norms = [*(block.ln_1 for block in blocks[1:]), self.ln_f]
        for i, (block, next_norm) in enumerate(zip(blocks, norms, strict=True)):
            x = block.attn(x, batch, cache and cache[i], self.ops)
            x, residual = block.ln_2.add(x, residual, self.ops)
            x = block.mlp(x, self.ops)
            x, residual = next_norm.add(x, residual, self.ops)
        return x


HF_OPTIONS = {  # fields of the configuration -> options of config.json
    "vocab_size": "vocab_size", "context_size": "n_positions", "dim": "n_embd", "num_layers": "n_layer",
    "num_heads": "n_head", "intermediate_dim": "n_inner", "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}  # fmt: skip


def from_hf(reader: ConfigReader) -> GPT2Config:
    """What config.json says; ValueError for options that change what the network computes."""
    reader.require_one_of("activation_function", "gelu_new", "gelu_pytorch_tanh")
    reader.require_one_of("scale_attn_weights", True)
    for name in ("add_cross_attention", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        reader.require_one_of(name, False)
    dim, num_heads = reader.count("n_embd"), reader.count("n_head")
    defaults = {"intermediate_dim": 4 * dim, "norm_eps": 1e-5, "tied_embeddings": True}
    options = reader.read_fields(GPT2Config, HF_OPTIONS, **defaults)
    return reader.make(GPT2Config, **options, num_kv_heads=num_heads, head_dim=dim // num_heads)


def from_gguf(reader: ConfigReader, file: TensorSource) -> GPT2Config:
    """What a GGUF file's metadata and its optional tensors say."""
    eps = reader.number("attention.layer_norm_epsilon", 1e-5)
    return reader.make(GPT2Config, **gguf_shape(reader, file), norm_eps=eps)


def to_hf(config: GPT2Config) -> dict[str, Any]:
    """The arguments of transformers' configuration of the same network."""
    return {"model_type": "gpt2", **{option: getattr(config, name) for name, option in HF_OPTIONS.items()}}


def to_gguf(config: GPT2Config) -> dict[str, Any]:
    """GPT-2's own metadata of a GGUF file."""
    return {"attention.layer_norm_epsilon": config.norm_eps}


def _shape(num_layers: int, dim: int, num_heads: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=50257, context_size=1024, dim=dim, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=dim // num_heads, intermediate_dim=4 * dim, bos_id=50256, eos_ids=(50256,),
    )  # fmt: skip


FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    network=GPT2,
    from_hf=from_hf,
    from_gguf=from_gguf,
    to_hf=to_hf,
    to_gguf=to_gguf,
    gguf_names={
        "wte": ("token_embd",),
        "wpe": ("position_embd",),
        "h.{}.ln_1": ("blk.{}.attn_norm",),
        "h.{}.attn.c_attn": ("blk.{}.attn_qkv",),
        "h.{}.attn.c_proj": ("blk.{}.attn_output",),
        "h.{}.ln_2": ("blk.{}.ffn_norm",),
        "h.{}.mlp.c_fc": ("blk.{}.ffn_up",),
        "h.{}.mlp.c_proj": ("blk.{}.ffn_down",),
        "ln_f": ("output_norm",),
        "lm_head": ("output",),
    },
    hf_prefix="transformer.",
    hf_transposed=("h.{}.attn.c_attn", "h.{}.attn.c_proj", "h.{}.mlp.c_fc", "h.{}.mlp.c_proj"),
    hf_buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    known_shapes={
        "gpt2": _shape(12, 768, 12),
        "gpt2-medium": _shape(24, 1024, 16),
        "gpt2-large": _shape(36, 1280, 20),
        "gpt2-xl": _shape(48, 1600, 25),
    },
)
