"""Every op in plain PyTorch: the specification.

Each function here states what an op means; a kernel is right when it agrees with the function of the same name and
signature. Written to be read, differentiable where training needs it, and correct in any float dtype: run in float64
it is the oracle of the tests, run in the tested dtype it sets their error budget (tests/numerics.py).

Shapes use the project's glossary (DESIGN.md): tokens of all sequences lie end to end, `[num_tokens, ...]`, and
`cu_seqlens` holds where each sequence begins. Padding is legal data: slot -1 stores nothing, context 0 yields zeros.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; x `[num_tokens, dim]`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; x `[num_tokens, dim]`."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: returns `(layer_norm(x + residual), x + residual)`."""
    residual = x + residual
    return layer_norm(residual, weight, bias, eps), residual


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and the residual stream, normalised: returns `(rms_norm(x + residual), x + residual)`."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate pairs of each head by an angle that grows with the position (https://arxiv.org/abs/2104.09864).

    q `[num_tokens, num_heads, head_dim]`, k `[num_tokens, num_kv_heads, head_dim]`, positions `[num_tokens]` int32,
    cos and sin `[context_size, head_dim / 2]` float32. Pairs are `(i, i + head_dim / 2)`, or neighbours `(2i, 2i + 1)`
    when `interleaved`, as checkpoints of the llama.cpp kind store them. Returns new q and k.
    """
    index = positions.long()
    cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # [num_tokens, 1, head_dim / 2]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of `x + bias` in its tanh form (GPT-2's `gelu_new`); x `[num_tokens, hidden_dim]`."""
    return F.gelu(x + bias, approximate="tanh")


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection: `[num_tokens, 2 * hidden_dim]` -> `[num_tokens, hidden_dim]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def pack(weight: Tensor) -> Tensor:
    """What `linear` takes, made once from a weight `[out_features, in_features]`. The reference packs nothing."""
    return weight


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, residual: Tensor | None = None
) -> Tensor:
    """`activation(x @ weight.T + bias) + residual`: x `[num_tokens, in_features]` -> `[num_tokens, out_features]`.

    weight is `pack([out_features, in_features])`; activation None or "gelu" (the tanh form); residual has y's shape.
    """
    y = F.linear(x, weight, bias)
    if activation == "gelu":
        y = F.gelu(y, approximate="tanh")
    elif activation is not None:
        raise ValueError(f"activation must be None or 'gelu', not {activation!r}")
    return y if residual is None else y + residual


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing.

    k, v `[num_tokens, num_kv_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`;
    slot_mapping `[num_tokens]`: block * block_size + offset.
    """
    live = slot_mapping >= 0
    slots = slot_mapping[live].long()
    k_cache.flatten(0, 1)[slots] = k[live]
    v_cache.flatten(0, 1)[slots] = v[live]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence.

    q `[num_tokens, num_heads, head_dim]`, k and v `[num_tokens, num_kv_heads, head_dim]` with num_heads a multiple of
    num_kv_heads; cu_seqlens `[num_seqs + 1]` int32; max_seqlen bounds the longest sequence. Returns o shaped as q.
    """
    bounds = cu_seqlens.tolist()
    pieces = [_attend(q[a:b], k[a:b], v[a:b], scale) for a, b in pairwise(bounds)]
    return torch.cat([*pieces, torch.zeros_like(q[bounds[-1] :])])


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context, causal from the bottom right.

    q `[num_tokens, num_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`; block_table
    `[num_seqs, max_blocks]` int32, -1 unused; context_lens `[num_seqs]` int32 count the cached tokens, this step's
    included; query i of n sees the first `context_len - n + 1 + i` of them, and an empty view yields zeros.
    cu_seqlens_q `[num_seqs + 1]` int32; max_seqlen_q bounds the longest query. Returns o shaped as q.
    """
    bounds, lengths, block_size = cu_seqlens_q.tolist(), context_lens.tolist(), k_cache.shape[1]
    pieces = []
    for (a, b), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        used = blocks[: -(-length // block_size)].long()
        k, v = (cache[used].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        pieces.append(_attend(q[a:b], k, v, scale))
    return torch.cat([*pieces, torch.zeros_like(q[bounds[-1] :])])


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence: the n queries belong to the last n of the keys. The mask, for 2 queries of 4 keys:

    1 1 1 0
    1 1 1 1
    """
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    if num_keys == 0:
        return torch.zeros_like(q)
    rows = q.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)  # [num_kv_heads, group * queries, dim]
    scores = (rows @ k.permute(1, 2, 0)).unflatten(1, (-1, num_queries)) * scale
    if num_queries > 1:
        last = torch.arange(num_queries, device=q.device).unsqueeze(1) + (num_keys - num_queries)
        hidden = torch.arange(num_keys, device=q.device) > last  # [num_queries, num_keys]
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    if num_queries > num_keys:
        weights = weights.nan_to_num(0.0)
    o = weights.flatten(1, 2) @ v.transpose(0, 1)  # [num_kv_heads, group * queries, head_dim]
    return o.unflatten(1, (-1, num_queries)).permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)


def apply_penalties(
    logits: Tensor,
    counts: Tensor,
    in_prompt: Tensor,
    repetition_penalty: Tensor,
    presence_penalty: Tensor,
    frequency_penalty: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
) -> None:
    """Change logits `[num_seqs, vocab_size]` in place by what each sequence has said so far (vLLM's semantics).

    counts `[num_seqs, vocab_size]` int32: how often each id was generated; in_prompt `[num_seqs, vocab_size]` bool.
    repetition_penalty r > 0 (1 off): logits of ids in prompt or output are divided by r if positive, else multiplied.
    frequency_penalty f and presence_penalty p (0 off): minus `f * count`, minus p if count > 0. These three are
    `[num_seqs]` float32. bias_ids `[num_seqs, max_bias]` int32 (-1 unused) and bias_values float32 are added last.
    """
    said = counts > 0
    repeated = torch.where(logits > 0, 1 / repetition_penalty.unsqueeze(1), repetition_penalty.unsqueeze(1))
    logits *= torch.where(said | in_prompt, repeated, 1.0).to(logits.dtype)
    logits -= (frequency_penalty.unsqueeze(1) * counts + presence_penalty.unsqueeze(1) * said).to(logits.dtype)
    used = bias_ids >= 0
    rows = used.nonzero()[:, 0]
    logits.index_put_((rows, bias_ids[used].long()), bias_values[used].to(logits.dtype), accumulate=True)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row; returns `(token_ids int32, logprobs float32)`, both `[num_seqs]`.

    logits `[num_seqs, vocab_size]` of any float dtype. Per row: temperature float32 (0 takes the first maximum), top_k
    int32 (0 off), top_p float32 (1 off), min_p float32 (0 off), seeds int64, positions int32 (the new token's). Filters
    act in Hugging Face's order: temperature, top-k, top-p on what is left, min-p; ties go to the lower id, so exactly k
    survive top-k. The draw is Gumbel-max over `gumbel_noise`. The log-probability is the chosen token's under the raw
    softmax of the row. A row with a NaN, or with no logit above -inf, gets id -1 and log-probability NaN.
    """
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)  # NaN if any is NaN
    legal = (peak > -torch.inf).squeeze(1)
    gap = torch.where(logits == peak, 0.0, logits - peak)  # 0 at the maximum, even at +inf
    gap = torch.where(legal.unsqueeze(1), gap, 0.0)
    score = gap
    if bool((temperature > 0).any()):
        drawn = (temperature > 0).unsqueeze(1)
        scaled = gap / torch.where(drawn, temperature.unsqueeze(1), 1.0)
        kept = surviving(scaled, gap, top_k, top_p, min_p)
        noisy = scaled + gumbel_noise(seeds, positions, logits.shape[1])
        score = torch.where(drawn, noisy.masked_fill(~kept, -torch.inf), gap)
    token_ids = score.argmax(-1)
    logprobs = gap.gather(1, token_ids.unsqueeze(1)).squeeze(1) - gap.exp().sum(-1).log()
    return torch.where(legal, token_ids, -1).int(), torch.where(legal, logprobs, torch.nan)


# Top-p sums weights in units of 2^-44 of the largest: integers add in any order to the same bits.
TOP_P_UNIT = 2.0**44


def surviving(scaled: Tensor, gap: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which ids pass top-k, then top-p, then min-p: bool `[num_seqs, vocab_size]`.

    gap `logit - max` orders the ids (ties: lower id first); scaled is `gap / temperature`, so an id's weight is
    `exp(scaled)`, 1 at the maximum. Top-p keeps an id if the weights ranked before it sum to less than top_p of all.
    """
    weight = scaled.exp()
    kept = weight >= min_p.unsqueeze(1)
    if not bool(((top_k > 0) | (top_p < 1)).any()):
        return kept
    order = gap.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(gap.shape[1], device=gap.device)
    limit = torch.where(top_k > 0, top_k, gap.shape[1]).unsqueeze(1)
    units = torch.where(rank < limit, (weight.gather(1, order).double() * TOP_P_UNIT).long(), 0)
    before = units.cumsum(-1) - units
    mass = (before + units)[:, -1:].double() * top_p.double().unsqueeze(1)
    ranked = (rank < limit) & ((before < mass) | (top_p >= 1).unsqueeze(1))
    return kept & torch.zeros_like(kept).scatter(1, order, ranked)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Gumbel(0, 1) noise float32 `[num_seqs, vocab_size]`, a function of (seed, position, token id) and nothing else.

    Token id t takes word `t % 4` of Philox4x32-10 at counter `(t // 4, position, 0, 0)` under the 64-bit seed as key.
    A word w becomes `u = min(w * 2^-32 + 2^-33, 1 - 2^-24)` and `-log(-log1p(-u))`, which resolves the winning tail.
    """
    group = torch.arange(-(-vocab_size // 4), device=seeds.device).expand(len(seeds), -1)
    zero = torch.zeros_like(group)
    counter = (group, positions.long().unsqueeze(1).expand_as(group) & 0xFFFFFFFF, zero, zero)
    key = (seeds.unsqueeze(1) & 0xFFFFFFFF, (seeds.unsqueeze(1) >> 32) & 0xFFFFFFFF)
    words = torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :vocab_size]
    uniform = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011): four counter words and two key words, each int64 in [0, 2^32)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps past 2^63; the bits are right
        c0, c1, c2, c3 = (
            (b >> 32) & 0xFFFFFFFF ^ c1 ^ k0,
            b & 0xFFFFFFFF,
            (a >> 32) & 0xFFFFFFFF ^ c3 ^ k1,
            a & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row, best first, ties to the lower id: `(ids int32, logprobs float32)`.

    logits `[num_seqs, vocab_size]`; both results `[num_seqs, num]`, log-probabilities under the raw softmax.
    """
    logprobs = torch.log_softmax(logits.float(), -1)
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return ids[:, :num].int(), values[:, :num]
