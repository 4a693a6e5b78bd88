"""DecoderConfig: everything in which the decoder-only families of today differ, as data."""

from dataclasses import dataclass
from typing import NamedTuple

from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.rope import RopeScaling
from octavo.gpt.quoting import quoted

MAX_ANGLES = 2**27  # the rotary tables of a million positions of 128 values: half a gigabyte

WORDS = {  # what a field of the configuration may say
    "norm": ("rms", "layer"),
    "qk_norm": ("", "head", "projection"),
    "block": ("serial", "parallel"),
    "positions": ("rotary", "learned"),
    "activation": ("silu", "gelu", "gelu_erf", "relu", "relu2"),
}


class LayerType(NamedTuple):
    """In what a layer may differ from the others."""

    is_sliding: bool = False  # attention sees config.sliding_window tokens
    rope: str = "global"  # the rotary table: "global", "local" or "none"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A network of the kit in parts.py. A field's default is Llama's way; 0, False and "" leave a thing out.

    Norms: `norm` "rms" or "layer" (with `norm_bias`), before the branches (`pre_norm`) and after them (`post_norm`);
    `qk_norm` of q and k, each "head" by itself or the whole "projection". Blocks: "serial", attention then
    feed-forward, or "parallel", both of the same input, which `shared_norm` normalises once for both.
    """

    norm: str = "rms"
    norm_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    block: str = "serial"
    shared_norm: bool = False

    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str = ""
    attention_scale: float = 0.0  # of q @ k; 0: head_dim ** -0.5
    attention_softcap: float = 0.0
    sliding_window: int = 0  # tokens that a sliding layer sees, the newest included; 0: all
    layer_types: tuple[LayerType, ...] = ()  # one a layer; (): all alike, sliding where there is a window

    positions: str = "rotary"
    position_offset: int = 0  # rows of a learned table before position 0
    rotary_dim: int = 0  # values of a head that are rotated; 0: all
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = False  # rotary pairs are neighbours, as llama.cpp stores Llama's
    local_rope_theta: float = 10000.0  # of layers whose rope is "local"; never scaled

    activation: str = "silu"
    gated: bool = True  # activation(gate) * up; else activation(up)
    mlp_bias: bool = False

    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what a branch adds to the residual stream
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    head_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {words}, not {quoted(getattr(self, name))}")
        if self.layer_types and len(self.layer_types) < self.num_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers of num_layers ({self.num_layers})")
        if self.positions == "rotary":
            self._check_rotary()

    def _check_rotary(self) -> None:
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim must be even and at most head_dim ({self.head_dim}), not {self.rotary_dim}")
        if self.rotary_width % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        if self.context_size * self.rotary_width > MAX_ANGLES:
            claim = f"context_size ({self.context_size}) x head_dim ({self.rotary_width})"
            raise ValueError(f"{claim} must be at most {MAX_ANGLES} for rotary positions")

    @property
    def rotary_width(self) -> int:
        """Values of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    def layer_type(self, i: int) -> LayerType:
        """The kind of layer i."""
        return self.layer_types[i] if self.layer_types else LayerType(is_sliding=self.sliding_window > 0)

    def window(self, i: int) -> int:
        """The tokens that layer i's attention sees, 0 for all."""
        return self.sliding_window if self.layer_type(i).is_sliding else 0

    @property
    def longest_context(self) -> int:
        """Dynamic scaling serves `factor` times the context, as far as rotary tables may grow."""
        if self.rope_scaling is None or self.rope_scaling.kind != "dynamic":
            return self.context_size
        longest = min(self.context_size * self.rope_scaling.factor, MAX_ANGLES // self.rotary_width)
        return max(self.context_size, int(longest))

    @property
    def attention_window(self) -> int:
        windows = [self.window(i) for i in range(self.num_layers)]
        return max(windows) if all(windows) else 0
