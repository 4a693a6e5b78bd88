"""ModelConfig: the shape of a network, refused where it makes no sense."""

from dataclasses import dataclass

FAMILIES = ("gpt2", "llama")

MAX_CONTEXT = 2**20  # the rotary tables of a longer window would outweigh the model

COUNTS = ("vocab_size", "context_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_dim")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a network; `head_dim` is its own fact, since some checkpoints do not keep `dim / num_heads`."""

    family: str
    vocab_size: int
    context_size: int  # positions the network was made for
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int  # width inside the feed-forward
    norm_eps: float = 1e-5
    tied_head: bool = True  # the head is the token embedding
    attention_bias: bool = False  # llama only: GPT-2 always has biases
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: "RopeScaling | None" = None
    rope_interleaved: bool = False  # pairs are neighbours, as llama.cpp stores them
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {self.family!r}")
        for name in COUNTS:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 2**31 - 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if self.context_size > MAX_CONTEXT:
            raise ValueError(f"context_size must be at most {MAX_CONTEXT}, not {self.context_size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.family == "gpt2" and self.dim != self.num_heads * self.head_dim:
            raise ValueError(f"dim ({self.dim}) must be num_heads x head_dim ({self.num_heads} x {self.head_dim})")
        if self.family == "llama" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")

    @property
    def num_parameters(self) -> int:
        """Weights the network holds, a tied head counted once."""
        heads = self.head_dim * (self.num_heads * 2 + self.num_kv_heads * 2)
        gates = 2 if self.family == "gpt2" else 3
        layer = self.dim * (heads + gates * self.hidden_dim)
        positions = self.context_size if self.family == "gpt2" else 0
        return (self.vocab_size * (1 if self.tied_head else 2) + positions) * self.dim + self.num_layers * layer


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the slow frequencies (`llama3`), a division of all (`linear`) or of each (`factors`)."""

    kind: str  # "linear", "llama3" or "factors"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()  # one a frequency, as GGUF files store llama3's stretch


def _gpt2(num_layers: int, dim: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2", vocab_size=50257, context_size=1024, dim=dim, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=dim // num_heads, hidden_dim=4 * dim, bos_id=50256, eos_ids=(50256,),
    )  # fmt: skip


KNOWN_SHAPES = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "smollm2": ModelConfig(
        family="llama", vocab_size=49152, context_size=8192, dim=576, num_layers=30, num_heads=9, num_kv_heads=3,
        head_dim=64, hidden_dim=1536, rope_theta=100000.0, bos_id=1, eos_ids=(2,),
    ),
    "llama-3.2-1b": ModelConfig(
        family="llama", vocab_size=128256, context_size=131072, dim=2048, num_layers=16, num_heads=32, num_kv_heads=8,
        head_dim=64, hidden_dim=8192, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 32.0),
        bos_id=128000, eos_ids=(128001, 128008, 128009),
    ),
}  # fmt: skip
