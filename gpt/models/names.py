"""What Llama-like checkpoints call the kit's modules. A family's own table changes some: `HF_NAMES | {...}`."""

QKV = "layers.{}.self_attn.qkv_proj"
GGUF_QKV = "blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"
GGUF_FUSED = ("blk.{}.attn_qkv",)  # the three as one tensor

HF_NAMES = {
    "layers.{}.attn_norm": ("layers.{}.input_layernorm",),
    "layers.{}.mlp_norm": ("layers.{}.post_attention_layernorm",),
    "layers.{}.self_attn.q_norm": ("layers.{}.self_attn.q_norm",),
    "layers.{}.self_attn.k_norm": ("layers.{}.self_attn.k_norm",),
    QKV: tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    "layers.{}.mlp.gate_up_proj": ("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"),
}
GGUF_NAMES = {
    "embed_tokens": ("token_embd",),
    "embed_positions": ("position_embd",),
    "layers.{}.attn_norm": ("blk.{}.attn_norm",),
    QKV: GGUF_QKV,
    "layers.{}.self_attn.q_norm": ("blk.{}.attn_q_norm",),
    "layers.{}.self_attn.k_norm": ("blk.{}.attn_k_norm",),
    "layers.{}.self_attn.o_proj": ("blk.{}.attn_output",),
    "layers.{}.attn_post_norm": ("blk.{}.post_attention_norm",),
    "layers.{}.mlp_norm": ("blk.{}.ffn_norm",),
    "layers.{}.mlp.gate_up_proj": ("blk.{}.ffn_gate", "blk.{}.ffn_up"),
    "layers.{}.mlp.up_proj": ("blk.{}.ffn_up",),
    "layers.{}.mlp.down_proj": ("blk.{}.ffn_down",),
    "layers.{}.mlp_post_norm": ("blk.{}.post_ffw_norm",),
    "norm": ("output_norm",),
    "lm_head": ("output",),
}
SANDWICH = {  # four norms a layer, as Gemma 2 and 3 and GLM-4 name them
    "layers.{}.attn_post_norm": ("layers.{}.post_attention_layernorm",),
    "layers.{}.mlp_norm": ("layers.{}.pre_feedforward_layernorm",),
    "layers.{}.mlp_post_norm": ("layers.{}.post_feedforward_layernorm",),
}


ROTARY = ("layers.{}.self_attn.q_proj", "layers.{}.self_attn.k_proj", "blk.{}.attn_q", "blk.{}.attn_k")
