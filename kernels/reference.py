"""Every op in plain PyTorch: the specification.

Each function here states what an op means; a kernel is right when it agrees with the function of the same name and
signature. Written to be read, differentiable where training needs it, and correct in any float dtype: run in float64
it is the oracle of the tests, run in the tested dtype it sets their error budget (testing/numerics.py).

Shapes use the project's glossary (DESIGN.md): tokens of all sequences lie end to end, `[num_tokens, ...]`, and
`cu_seqlens` holds where each sequence begins. Padding is legal data: slot -1 stores nothing, context 0 yields zeros.

A sampled token is compared exactly, so the arithmetic behind it is fixed to the bit (sampling_math.py), top-p adds
integers and scores are float64. Whatever computes the sampling ops, in any order of the vocabulary, chooses the same
token.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.activations import ACTIVATIONS, check_activation
from octavo.kernels.sampling_math import allowed_bits, gumbel, log_softmax, natural_log, philox, scaled_gap, weights_q44
from octavo.kernels.weights import UnreadWeight, Weight, dequantise, quantise


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; x `[..., dim]`, its values contiguous.

    In `[num_tokens, num_heads, dim]`, perhaps a view of a projection, it is the norm of each head.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; x `[..., dim]`, as in `layer_norm`."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
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
    cos and sin `[context_size, rotary_dim / 2]` float32: the first rotary_dim values of a head are rotated, the others
    are copied. Pairs are `(i, i + rotary_dim / 2)`, or neighbours `(2i, 2i + 1)` when `interleaved`, as checkpoints of
    the llama.cpp kind store them. Returns new q and k.
    """
    index = positions.long()
    cos, sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)  # [num_tokens, 1, rotary_dim / 2]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    x, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of a fused projection, `[num_tokens, 2 * dim]` -> `[num_tokens, dim]` for any dim."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up`, GELU in its tanh form; shapes as in `silu_mul` (GeGLU, https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def pack(weight: Weight, format: str | None = None) -> Weight:
    """What the products take, of a weight `[out_features, in_features]`: a dense one in that format, else as it is.

    One that still lies in a file is read.
    """
    if isinstance(weight, UnreadWeight):
        weight = weight.read()
    return quantise(weight, format) if format is not None and isinstance(weight, Tensor) else weight


def embed(token_ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """Rows of a table: token_ids `[num_tokens]`, int32 or int64, weight `[num_rows, dim]` in any format -> in `dtype`.

    Differentiable where the table is dense.
    """
    return F.embedding(token_ids, dequantise(weight)).to(dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """`activation(x @ weight.T + bias)`: x `[num_tokens, in_features]` -> `[num_tokens, out_features]`.

    weight `[out_features, in_features]` in any format, activation None or a name in `ACTIVATIONS`.
    """
    return ACTIVATIONS[check_activation(activation)](F.linear(x, dequantise(weight, x.dtype), bias))


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values in their slots, in place; slot -1 stores nothing.

    k, v `[num_tokens, num_kv_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`;
    slot_mapping `[num_tokens]`: block * block_size + offset.
    """
    mask = slot_mapping >= 0
    slots = slot_mapping[mask].long()
    block, offset = slots // k_cache.shape[1], slots % k_cache.shape[1]
    k_cache[block, offset] = k[mask]
    v_cache[block, offset] = v[mask]


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Each token attends to itself and the earlier tokens of its own sequence.

    q `[num_tokens, num_heads, head_dim]`, k and v `[num_tokens, num_kv_heads, head_dim]` with num_heads a multiple of
    num_kv_heads; cu_seqlens `[num_seqs + 1]` int32; max_seqlen bounds the longest sequence. Returns o shaped as q.

    window: a token sees itself and the `window - 1` tokens before it (0: all of them;
    https://arxiv.org/abs/2310.06825). softcap: a score s becomes `softcap * tanh(s / softcap)` (0: it stays;
    https://arxiv.org/abs/2408.00118). sinks `[num_heads]` float32: a further score a head in the softmax, which takes
    weight and has no value (https://arxiv.org/abs/2309.17453).
    """
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(bounds)]
    qs, ks, vs = (x[: bounds[-1]].split(lengths) for x in (q, k, v))
    attend_all = partial(attend, scale=scale, window=window, softcap=softcap, sinks=sinks)
    if len(set(lengths)) == 1:  # as in training: one product for all
        o = attend_all(torch.stack(qs), torch.stack(ks), torch.stack(vs)).flatten(0, 1)
    else:
        o = torch.cat([q[:0], *(attend_all(*rows) for rows in zip(qs, ks, vs, strict=True))])
    return torch.cat([o, torch.zeros_like(q[bounds[-1] :])])


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Each sequence's newest tokens attend to its cached context, causal from the bottom right.

    q `[num_tokens, num_heads, head_dim]`; caches `[num_blocks, block_size, num_kv_heads, head_dim]`; block_table
    `[num_seqs, max_blocks]` int32, -1 unused; context_lens `[num_seqs]` int32 count the cached tokens, this step's
    included; query i of n sees the first `context_len - n + 1 + i` of them, and an empty view yields zeros.
    cu_seqlens_q `[num_seqs + 1]` int32; max_seqlen_q bounds the longest query. Returns o shaped as q.

    window, softcap and sinks are causal_attention's. Blocks that lie wholly before every query's window are never read:
    block_table may hold anything there.
    """
    bounds, lengths, block_size = cu_seqlens_q.tolist(), context_lens.tolist(), k_cache.shape[1]
    pieces = []
    for (a, b), length, blocks in zip(pairwise(bounds), lengths, block_table, strict=False):
        first = max(0, length - (b - a) + 1 - window) // block_size if window else 0  # block of the earliest key seen
        used = blocks[first : -(-length // block_size)].long()
        k, v = (cache[used].flatten(0, 1)[: length - first * block_size] for cache in (k_cache, v_cache))
        pieces.append(attend(q[a:b], k, v, scale, window, softcap, sinks))
    return torch.cat([*pieces, torch.zeros_like(q[bounds[-1] :])])


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float, sinks: Tensor | None) -> Tensor:
    """Sequences of one length, `[..., tokens, heads, head_dim]`; n queries belong to the last n of the keys.

    The mask, for 2 queries of 4 keys, and the same with a window of 2:

        1 1 1 0    0 1 1 0
        1 1 1 1    0 0 1 1
    """
    num_queries = q.shape[-3]
    num_keys, num_kv_heads = k.shape[-3:-1]
    if num_queries == 0 or num_keys == 0:
        return torch.zeros_like(q)
    # A kv head's query heads lie above one another: [..., num_kv_heads, group * num_queries, head_dim].
    rows = q.unflatten(-2, (num_kv_heads, -1)).movedim(-4, -2).flatten(-3, -2)
    scores = (rows @ k.movedim(-3, -1)).unflatten(-2, (-1, num_queries)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if num_queries > 1 or window:
        last = torch.arange(num_queries, dtype=torch.int64, device=q.device).unsqueeze(1) + (num_keys - num_queries)
        key = torch.arange(num_keys, dtype=torch.int64, device=q.device)
        hidden = (key > last) | (key <= last - window) if window else key > last
        scores = scores.masked_fill(hidden, -torch.inf)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if sinks is not None:
        beside = sinks.to(scores.dtype).view(num_kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, beside], -1)
    weights = torch.softmax(scores, -1)[..., :num_keys].to(v.dtype)
    if num_queries > num_keys:
        weights = weights.nan_to_num(0.0)  # queries before the first key see nothing
    o = weights.flatten(-3, -2) @ v.movedim(-2, -3)  # [..., num_kv_heads, group * num_queries, head_dim]
    return o.unflatten(-2, (-1, num_queries)).movedim(-2, -4).flatten(-3, -2)


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
    """Change logits `[num_seqs, vocab_size]` in place by what each sequence has generated so far (vLLM's semantics).
    counts `[num_seqs, vocab_size]` int32: how often each id was generated; in_prompt `[num_seqs, vocab_size]` bool.
    repetition_penalty r > 0 (1 off): logits of ids in prompt or output are divided by r if positive, else multiplied.
    frequency_penalty f and presence_penalty p (0 off): minus `f * count`, minus p if count > 0. These three are
    `[num_seqs]` float32. bias_ids `[num_seqs, max_bias]` int32 (-1 unused) and bias_values float32 are added last.
    """
    generated = counts > 0
    repeated = torch.where(logits > 0, 1 / repetition_penalty.unsqueeze(1), repetition_penalty.unsqueeze(1))
    logits *= torch.where(generated | in_prompt, repeated, 1.0).to(logits.dtype)
    logits -= (frequency_penalty.unsqueeze(1) * counts + presence_penalty.unsqueeze(1) * generated).to(logits.dtype)
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
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row; returns `(token_ids int32, logprobs float32)`, both `[num_seqs]`.

    logits `[num_seqs, vocab_size]` of any float dtype. Per row: temperature float32 (0 takes the first maximum), top_k
    int32 (0 off), top_p float32 (1 off), min_p float32 (0 off), seeds int64, positions int32 (the new token's). Filters
    act in Hugging Face's order: temperature, top-k, top-p on what is left, min-p; ties go to the lower id, so exactly k
    survive top-k, and the first maximum survives everything. The draw is Gumbel-max: the survivor with the largest
    `logit + temperature * noise` wins, so +inf does. The log-probability is the chosen token's under the raw softmax of
    the row. A row with a NaN, or with no logit above -inf, gets id -1 and log-probability NaN. allowed `[num_seqs,
    ceil(vocab_size / 32)]` int32: bit `id % 32` of word `id // 32` is 1 if the id may be chosen. Choice and filters see
    -inf in place of the others' logits; a NaN among them counts, and log-probabilities stay those of the whole row.
    """
    logits = raw = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~(allowed_bits(allowed, logits.shape[1]) | logits.isnan()), -torch.inf)
    valid = logits.amax(-1) > -torch.inf  # NaN if any is NaN
    is_random = temperature > 0
    temperature = torch.where(is_random, temperature, 0.0).clamp(max=torch.finfo(torch.float32).max).unsqueeze(1)
    score = logits.double()
    if bool(is_random.any()):
        # The product of two float32 is exact in float64: one rounding in all, with or without a fused multiply-add.
        score = score + temperature.double() * gumbel_noise(seeds, positions, logits.shape[1]).double()
        keep = keep_mask(logits, temperature, top_k, top_p, min_p)
        score = score.masked_fill(~keep & is_random.unsqueeze(1), -torch.inf)
    token_ids = score.argmax(-1)
    logprobs = log_softmax(raw).gather(1, token_ids.unsqueeze(1)).squeeze(1)
    return torch.where(valid, token_ids, -1).int(), torch.where(valid, logprobs, torch.nan)


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The LM head and an unfiltered draw in one: the ids that `sample` chooses from `linear(hidden, weight)`.

    hidden `[num_seqs, dim]`, weight `[vocab_size, dim]` in any format; temperature, seeds and positions as in
    `sample`, no filter. Returns token_ids `[num_seqs]` int32, -1 where a row's logits have a NaN or none above -inf.
    """
    off = torch.zeros_like(temperature)
    return sample(linear(hidden, weight), temperature, off.int(), 1 + off, off, seeds, positions)[0]


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row, best first, ties to the lower id: `(ids int32, logprobs float32)`.

    logits `[num_seqs, vocab_size]`, num from 1 to vocab_size; both results `[num_seqs, num]`, log-probabilities under
    the raw softmax. A row with a NaN, or with no logit above -inf, gets ids -1 and log-probabilities NaN.
    """
    logits = logits.float()
    valid = logits.amax(-1, keepdim=True) > -torch.inf
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num]
    logprobs = log_softmax(logits).gather(1, ids)
    return torch.where(valid, ids, -1).int(), torch.where(valid, logprobs, torch.nan)


def keep_mask(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which ids pass top-k, then top-p, then min-p: bool `[num_seqs, vocab_size]`; temperature `[..., 1]`.

    Ids rank by logit, ties by lower id. With `scaled = (logit - max) / temperature` an id weighs `exp(scaled)`, so the
    maximum 1. Top-k keeps an id if fewer than k rank before it; top-p if the weights before it, of those that passed
    top-k, sum to less than top_p of all that passed; min-p if `scaled >= log(min_p)`.
    """
    scaled = scaled_gap(logits, temperature)
    floor = torch.where(min_p > 0, natural_log(min_p.clamp(torch.finfo(torch.float32).tiny, 1.0)), -torch.inf)
    kept = scaled >= floor.unsqueeze(1)
    if not bool(((top_k > 0) | (top_p < 1)).any()):
        return kept
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(logits.shape[1], dtype=torch.int64, device=logits.device)
    first = rank < torch.where(top_k > 0, top_k, logits.shape[1]).unsqueeze(1)
    weights = torch.where(first, weights_q44(scaled.gather(1, order)), 0)
    before = weights.cumsum(-1) - weights
    mass = (before + weights)[:, -1].double() * top_p.double()
    first &= (before < mass.ceil().long().clamp(min=1).unsqueeze(1)) | ~(top_p < 1).unsqueeze(1)
    return kept & torch.zeros_like(kept).scatter(1, order, first)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Gumbel(0, 1) noise float32 `[num_seqs, vocab_size]`, a function of (seed, position, token id) and nothing else.

    Token id t takes word `t % 4` of Philox4x32-10 at counter `(t // 4, position, 0, 0)` under the 64-bit seed as key.
    A word w becomes `u = min(w * 2^-32 + 2^-33, 1 - 2^-24)` and `-log(-log1p(-u))`, which resolves the winning tail.
    """
    group = torch.arange(-(-vocab_size // 4), dtype=torch.int64, device=seeds.device).expand(len(seeds), -1)
    zero = torch.zeros_like(group)
    counter = (group, positions.long().unsqueeze(1).expand_as(group) & 0xFFFFFFFF, zero, zero)
    key = (seeds.unsqueeze(1) & 0xFFFFFFFF, (seeds.unsqueeze(1) >> 32) & 0xFFFFFFFF)
    words = torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :vocab_size]
    return gumbel(words)
