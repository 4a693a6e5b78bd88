"""ModelConfig: the shape of a network, refused where it makes no sense. Each family adds what it alone has."""

from dataclasses import dataclass, fields
from typing import ClassVar

from octavo.gpt.quoting import quoted

MAX_CONTEXT = 2**20  # the rotary tables of a longer context would outweigh the model
MAX_LAYERS = 1000  # the deepest published networks have some 130; a claim of more would cost seconds to refute
MAX_HEAD_DIM = 1024  # likewise: rotary tables grow with it, whatever the file holds


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every family has; `head_dim` is its own fact, since some checkpoints do not keep `dim / num_heads`."""

    family: ClassVar[str]  # the name of the Family that made it

    vocab_size: int
    context_size: int  # positions the network was made for
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_dim: int  # width inside the feed-forward
    norm_eps: float = 1e-5
    tied_embeddings: bool = True  # the head is the token embedding
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(ModelConfig) if field.type is int):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 2**31 - 1:
                raise ValueError(f"{name} must be a positive integer, not {quoted(value)}")
        limits = {"context_size": MAX_CONTEXT, "num_layers": MAX_LAYERS, "head_dim": MAX_HEAD_DIM}
        for name, most in limits.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")

    @property
    def longest_context(self) -> int:
        """The most positions that an engine may be asked for; without a word it serves `context_size`."""
        return self.context_size

    @property
    def attention_window(self) -> int:
        """Tokens after which no layer's attention sees a token any more; 0: some layer sees all."""
        return 0
