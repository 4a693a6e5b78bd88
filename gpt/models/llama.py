"""Llama: rotary positions, RMSNorm, SwiGLU, grouped-query attention (https://arxiv.org/abs/2302.13971).

q, k and v are one projection, gate and up another, so that a step reads each weight in few, wide products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from octavo.gpt.models.base import LayerCache, Linear, Model, RMSNorm, attend, embedding, initialise
from octavo.gpt.models.batch import Batch
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.config_reader import ConfigReader, TensorSource, gguf_shape
from octavo.gpt.models.family import Family
from octavo.gpt.models.rope import (
    GGUF_FACTORS,
    RopeScaling,
    RopeTables,
    rope_from_hf,
    rope_tables,
    scaling_from_gguf,
)
from octavo.kernels.ops import REFERENCE, Ops

MAX_ANGLES = 2**27  # the rotary tables of a million positions of 128 values: half a gigabyte


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    family = "llama"

    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = False  # rotary pairs are neighbours, as llama.cpp stores them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.context_size * self.head_dim > MAX_ANGLES:
            claim = f"context_size ({self.context_size}) x head_dim ({self.head_dim})"
            raise ValueError(f"{claim} must be at most {MAX_ANGLES} for rotary positions")


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(config.dim, (q_rows, kv_rows, kv_rows), config.attention_bias)
        self.o_proj = Linear(q_rows, config.dim, config.attention_bias, ends_branch=True)

    def forward(self, x: Tensor, batch: Batch, cache: LayerCache | None, tables: RopeTables, ops: Ops) -> Tensor:
        c = self.config
        heads = self.qkv_proj(x, ops).view(len(x), -1, c.head_dim)
        q, k, v = heads.split_with_sizes((c.num_heads, c.num_kv_heads, c.num_kv_heads), 1)
        q, k = ops.rope(q, k, batch.positions, *tables, c.rope_interleaved)
        o = attend(ops, q, k, v, batch, cache, c.head_dim**-0.5)
        return self.o_proj(o.flatten(1), ops)


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.dim, (config.intermediate_dim, config.intermediate_dim), config.mlp_bias)
        self.down_proj = Linear(config.intermediate_dim, config.dim, config.mlp_bias, ends_branch=True)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return self.down_proj(ops.silu_mul(self.gate_up_proj(x, ops)), ops)


class Block(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)


class Llama(Model):
    config: LlamaConfig

    def __init__(self, config: LlamaConfig, ops: Ops = REFERENCE, seed: int = 0) -> None:
        super().__init__(config, ops)
        self.embed_tokens = embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        initialise(self, seed)

    def make_buffers(self) -> None:
        c, device = self.config, self.norm.weight.device
        tables = rope_tables(c.head_dim, c.context_size, c.rope_theta, c.rope_scaling)
        self.cos, self.sin = (table.to(device) for table in tables)

    @property
    def embedding(self) -> nn.Embedding:
        return self.embed_tokens

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
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


HF_OPTIONS = {  # fields of the configuration -> options of config.json
    "vocab_size": "vocab_size", "context_size": "max_position_embeddings", "dim": "hidden_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim", "intermediate_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias",
}  # fmt: skip


def from_hf(reader: ConfigReader) -> LlamaConfig:
    """What config.json says; ValueError for options that change what the network computes."""
    reader.require_one_of("hidden_act", "silu", "swish")
    reader.require_one_of("sliding_window", None)
    dim, num_heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    theta, scaling = rope_from_hf(reader)
    options = reader.read_fields(
        LlamaConfig, HF_OPTIONS, num_kv_heads=num_heads, head_dim=dim // num_heads, norm_eps=1e-6,
        tied_embeddings=False, attention_bias=False, mlp_bias=False,
    )  # fmt: skip
    return reader.make(LlamaConfig, **options, rope_theta=theta, rope_scaling=scaling)


def from_gguf(reader: ConfigReader, file: TensorSource) -> LlamaConfig:
    """What a GGUF file's metadata and its optional tensors say. Rows of q and k keep llama.cpp's order."""
    shape = gguf_shape(reader, file)
    reader.require_one_of("expert_count", 0)
    reader.require_one_of("attention.value_length", shape["head_dim"])
    reader.require_one_of("rope.dimension_count", shape["head_dim"])
    return reader.make(
        LlamaConfig,
        **shape,
        norm_eps=reader.number("attention.layer_norm_rms_epsilon", 1e-5),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        rope_theta=reader.number("rope.freq_base", 10000.0),
        rope_scaling=scaling_from_gguf(reader, file, shape["head_dim"]),
        rope_interleaved=True,
    )


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The arguments of transformers' configuration of the same network."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        if scaling.kind == "factors":
            raise ValueError("transformers has no rotary scaling by a list of factors")
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        rope |= {"original_max_position_embeddings": scaling.original_context}
    options = {option: getattr(config, name) for name, option in HF_OPTIONS.items()}
    return {"model_type": "llama", "rope_parameters": rope, **options}


def to_gguf(config: LlamaConfig) -> dict[str, Any]:
    """Llama's own metadata of a GGUF file."""
    if config.rope_scaling is not None:
        raise ValueError("rotary scaling is not written to GGUF files")
    return {
        "attention.layer_norm_rms_epsilon": config.norm_eps, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }  # fmt: skip


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    network=Llama,
    from_hf=from_hf,
    from_gguf=from_gguf,
    to_hf=to_hf,
    to_gguf=to_gguf,
    hf_names={
        "layers.{}.self_attn.qkv_proj": tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{}.mlp.gate_up_proj": ("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"),
    },
    gguf_names={
        "embed_tokens": ("token_embd",),
        "layers.{}.input_layernorm": ("blk.{}.attn_norm",),
        "layers.{}.self_attn.qkv_proj": ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"),
        "layers.{}.self_attn.o_proj": ("blk.{}.attn_output",),
        "layers.{}.post_attention_layernorm": ("blk.{}.ffn_norm",),
        "layers.{}.mlp.gate_up_proj": ("blk.{}.ffn_gate", "blk.{}.ffn_up"),
        "layers.{}.mlp.down_proj": ("blk.{}.ffn_down",),
        "norm": ("output_norm",),
        "lm_head": ("output",),
    },
    hf_buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    gguf_constants=(GGUF_FACTORS,),
    rotary=("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "blk.{}.attn_q", "blk.{}.attn_k"),
    gguf_interleaved=True,
    known_shapes={
        "smollm2": LlamaConfig(
            vocab_size=49152, context_size=8192, dim=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_dim=1536, rope_theta=100000.0, bos_id=1, eos_ids=(2,),
        ),
        "llama-3.2-1b": LlamaConfig(
            vocab_size=128256, context_size=131072, dim=2048, num_layers=16, num_heads=32, num_kv_heads=8,
            head_dim=64, intermediate_dim=8192, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 32.0),
            bos_id=128000, eos_ids=(128001, 128008, 128009),
        ),
    },
)  # fmt: skip
