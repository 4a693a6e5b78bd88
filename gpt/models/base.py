"""What the model families share: weights as modules, attention with or without a cache, and the training view.

A family is a `Model` with its own `forward(batch, cache) -> hidden`; `logits(hidden)` is the same for all. The modules
hold weights and name them as checkpoints do; all arithmetic goes through an `Ops` value that is passed along.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.gpt.models.batch import Batch, dense_batch
from octavo.gpt.models.config import ModelConfig
from octavo.kernels.ops import Ops
from octavo.kernels.weights import Stacked, Weight, format_of, parts_of, size_of

LayerCache = tuple[Tensor, Tensor]  # k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim]


class ModelOutput(NamedTuple):
    logits: Tensor  # [batch, seq, vocab_size]
    loss: Tensor | None  # mean negative log-likelihood, None where there is nothing to predict


def unset(*shape: int) -> Tensor:
    """A weight without values yet: float32 whatever the default, where `with torch.device(...)` says."""
    return torch.empty(shape, dtype=torch.float32, device=torch.get_default_device())


class Packable(nn.Module):
    """A weight `[rows, columns]` of some type; packed, whatever the backend takes."""

    weight: Any

    def pack(self, ops: Ops, weight: Weight, format: str | None = None) -> None:
        """Take a weight, as the backend does; several that are stacked are packed each for itself."""
        packed = [ops.pack(part, format) for part in parts_of(weight)]
        if packed[0] is not weight:
            _keep(self, packed[0] if len(packed) == 1 else Stacked(tuple(packed)))


class Embedding(Packable):
    """A table `[num_rows, dim]` of which tokens are rows; it may be the head, too."""

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(unset(num_rows, dim))
        self._like = torch.empty(0, dtype=torch.float32, device="cpu")  # where the weight is packed

    @property
    def like(self) -> Tensor:
        """A tensor of the rows' dtype, where they are."""
        return self.weight if isinstance(self.weight, Tensor) else self._like

    def forward(self, ids: Tensor, ops: Ops) -> Tensor:
        return ops.embed(ids, self.weight, self.like.dtype)

    def pack(self, ops: Ops, weight: Weight, format: str | None = None) -> None:
        """Take a weight, as the backend does: rows stay of the dtype that the table had."""
        self._like = self.like.detach().new_empty(0)
        super().pack(ops, weight, format)


class Linear(Packable):
    """A weight `[out_features, in_features]` and perhaps a bias; packed, whatever the backend's `linear` takes.

    Several out_features stack as many projections of one input, in rows that checkpoints hold apart. A projection that
    `ends_branch` writes into the residual stream: random weights begin smaller there.
    """

    def __init__(
        self, in_features: int, out_features: int | tuple[int, ...], bias: bool, ends_branch: bool = False
    ) -> None:
        super().__init__()
        self.part_rows = out_features if isinstance(out_features, tuple) else (out_features,)
        self.ends_branch = ends_branch
        self.weight = nn.Parameter(unset(sum(self.part_rows), in_features))
        self.bias = nn.Parameter(unset(sum(self.part_rows))) if bias else None

    def forward(self, x: Tensor, ops: Ops, activation: str | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation)


class LayerNorm(nn.Module):
    def __init__(self, dim: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(unset(dim))
        self.bias = nn.Parameter(unset(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(unset(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


def attend(
    ops: Ops,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    cache: LayerCache | None,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of this step's tokens, over themselves alone or over the paged cache they are first written to."""
    kind = (window, softcap) if window or softcap else ()  # an op of someone's own may know neither
    bounds = batch.cu_seqlens_q, batch.max_seqlen_q
    if cache is None:
        return ops.causal_attention(q, k, v, *bounds, scale, *kind)
    ops.write_kv(k, v, *cache, batch.slot_mapping)
    return ops.paged_attention(q, *cache, batch.block_table, batch.context_lens, *bounds, scale, *kind)


class Model(nn.Module):
    """A network of one family: `forward`, which calling the model runs, is the engine's view; `loss` trains it."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.format: str | None = None  # that `pack` was asked for
        self.lm_head: Linear | None = None  # None: the head is the embedding

    @property
    def embedding(self) -> Embedding:
        """The token embedding, `[vocab_size, dim]`."""
        raise NotImplementedError

    def forward(self, batch: Batch, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """The hidden states after the last norm, `[num_tokens, dim]`; cache is one pair a layer, or None."""
        raise NotImplementedError

    @property
    def head(self) -> Weight:
        """The LM head, `[vocab_size, dim]`, as the backend's `linear` takes it."""
        return cast(Weight, (self.embedding if self.lm_head is None else self.lm_head).weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: `[n, dim]` -> `[n, vocab_size]`."""
        bias = None if self.lm_head is None else self.lm_head.bias
        return self.finish_logits(self.ops.linear(hidden, self.head, bias))

    def finish_logits(self, scores: Tensor) -> Tensor:
        """What a family does to the head's product, for each score by itself."""
        return scores

    @property
    def has_plain_head(self) -> bool:
        """Whether the logits are the head's product and nothing else, as the fused draw takes them to be."""
        return True

    def sample(self, hidden: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """The next token sampled from all of the vocabulary: `[n, dim]` -> ids `[n]` int32."""
        if self.has_plain_head:
            return self.ops.lm_head_sample(hidden, self.head, temperature, seeds, positions)
        off = torch.zeros_like(temperature)
        return self.ops.sample(self.logits(hidden), temperature, off.int(), 1 + off, off, seeds, positions)[0]

    def loss(self, token_ids: Tensor, targets: Tensor | None = None) -> ModelOutput:
        """Logits at every position of `[batch, seq]` ids, and the loss.

        Differentiable on the reference backend, and on the kernels of `octavo.kernels.training.trainable(ops)`, with
        the bits of an engine on those ops.

        targets `[batch, seq]` are the ids to predict at each position (-100: none); left out, each position predicts
        the id that follows it.
        """
        logits = self.logits(self(dense_batch(token_ids))).unflatten(0, token_ids.shape)
        if targets is None:
            targets = F.pad(token_ids[:, 1:], (0, 1), value=-100)
        if bool((targets == -100).all()):
            return ModelOutput(logits, None)
        return ModelOutput(logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long()))

    def make_buffers(self, length: int | None = None) -> None:
        """Tensors that follow from the configuration, made on the weights' device once these have memory.

        length, where it is known, is the most tokens that a sequence will have.
        """

    def set_length(self, length: int) -> None:
        """Say how many tokens a sequence has at most, where the network depends on it, before the first step."""

    def pack(self, format: str | None = None) -> None:
        """Replace the weights of all products by what the backend takes, in that format; training ends here.

        A table that is no head keeps its values.
        """
        self.format = format
        for module in self.modules():
            if isinstance(module, Packable) and isinstance(module.weight, nn.Parameter):
                self.pack_module(module)

    def pack_module(self, module: Packable) -> None:
        """Replace a module's dense weight likewise, in the format that the model was packed in."""
        is_product = isinstance(module, Linear) or (self.lm_head is None and module is self.embedding)
        module.pack(self.ops, module.weight.detach(), self.format if is_product else None)

    def formats(self) -> tuple[str, ...]:
        """What the products read, the most of it first: names of formats, or of dtypes for dense weights."""
        sizes: Counter[str] = Counter()
        tied = [self.embedding] if self.lm_head is None else []
        for module in (*(each for each in self.modules() if isinstance(each, Linear)), *tied):
            for part in parts_of(module.weight):
                sizes[format_of(part)] += size_of(part)
        return tuple(name for name, _ in sizes.most_common())

    @property
    def num_parameters(self) -> int:
        """Trained values, packed ones included."""
        packed = [
            m.weight for m in self.modules() if isinstance(m, Packable) and not isinstance(m.weight, nn.Parameter)
        ]
        return sum(map(size_of, (*self.parameters(), *packed)))

    def weights(self) -> list[Any]:
        """Every tensor and every weight of another format that a forward pass reads."""
        held = [(*m._parameters.values(), *m._buffers.values(), m.__dict__.get("weight")) for m in self.modules()]
        return [weight for weights in held for weight in weights]


def _keep(module: nn.Module, packed: Weight) -> None:
    """Put a packed weight in the place of the module's own: a buffer, if it is a tensor."""
    del module.weight
    if isinstance(packed, Tensor):
        module.register_buffer("weight", packed, persistent=False)
    else:
        module.weight = packed  # type: ignore[assignment]


def initialise(model: Model, seed: int) -> None:
    """Seeded random weights as GPT-2 draws them: normal(0.02), the residual projections divided by sqrt(2 layers)."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return  # a shape without memory, about to be loaded
    generator = torch.Generator(device).manual_seed(seed)
    deep = (2 * model.config.num_layers) ** -0.5
    for module in model.modules():
        scale = 0.02 * deep if getattr(module, "ends_branch", False) else 0.02
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.data.zero_()
            elif parameter.dim() == 1:
                parameter.data.fill_(1)
            else:
                parameter.data.normal_(0, scale, generator=generator)
    model.make_buffers()
