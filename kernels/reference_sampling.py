"""The sampling ops in plain PyTorch: the part of the specification that turns logits into tokens.

A choice is compared exactly, so its arithmetic is fixed to the bit (sampling_math.py), top-p adds integers and
scores are float64. Whatever computes these functions, in any order of the vocabulary, chooses the same token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.sampling_math import gap_below, gumbel, log_softmax, natural_log, philox, weight_units
from octavo.kernels.weights import Weight, dequantise


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
    survive top-k, and the first maximum survives everything. The draw is Gumbel-max: the survivor with the largest
    `logit + temperature * noise` wins, so +inf does. The log-probability is the chosen token's under the raw softmax of
    the row. A row with a NaN, or with no logit above -inf, gets id -1 and log-probability NaN.
    """
    logits = logits.float()
    legal = logits.amax(-1) > -torch.inf  # NaN if any is NaN
    drawn = temperature > 0
    heat = torch.where(drawn, temperature, 0.0).clamp(max=torch.finfo(torch.float32).max).unsqueeze(1)
    score = logits.double()
    if bool(drawn.any()):
        # The product of two float32 is exact in float64: one rounding in all, with or without a fused multiply-add.
        score = score + heat.double() * gumbel_noise(seeds, positions, logits.shape[1]).double()
        kept = surviving(logits, heat, top_k, top_p, min_p)
        score = score.masked_fill(~kept & drawn.unsqueeze(1), -torch.inf)
    token_ids = score.argmax(-1)
    logprobs = log_softmax(logits).gather(1, token_ids.unsqueeze(1)).squeeze(1)
    return torch.where(legal, token_ids, -1).int(), torch.where(legal, logprobs, torch.nan)


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The LM head and an unfiltered draw in one: the ids that `sample` chooses from `linear(hidden, weight)`.

    hidden `[num_seqs, dim]`, weight `[vocab_size, dim]` in any format; temperature, seeds and positions as in
    `sample`, no filter. Returns token_ids `[num_seqs]` int32, -1 where a row's logits have a NaN or none above -inf.
    """
    off = torch.zeros_like(temperature)
    return sample(
        F.linear(hidden, dequantise(weight, hidden.dtype)), temperature, off.int(), 1 + off, off, seeds, positions
    )[0]


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row, best first, ties to the lower id: `(ids int32, logprobs float32)`.

    logits `[num_seqs, vocab_size]`, num from 1 to vocab_size; both results `[num_seqs, num]`, log-probabilities under
    the raw softmax. A row with a NaN, or with no logit above -inf, gets ids -1 and log-probabilities NaN.
    """
    logits = logits.float()
    legal = logits.amax(-1, keepdim=True) > -torch.inf
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num]
    logprobs = log_softmax(logits).gather(1, ids)
    return torch.where(legal, ids, -1).int(), torch.where(legal, logprobs, torch.nan)


def surviving(logits: Tensor, heat: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which ids pass top-k, then top-p, then min-p: bool `[num_seqs, vocab_size]`; heat is the temperature, `[..., 1]`.

    Ids rank by logit, ties by lower id. With `scaled = (logit - max) / temperature` an id weighs `exp(scaled)`, so the
    maximum 1. Top-k keeps an id if fewer than k rank before it; top-p if the weights before it, of those that passed
    top-k, sum to less than top_p of all that passed; min-p if `scaled >= log(min_p)`.
    """
    finfo = torch.finfo(torch.float32)
    scaled = gap_below(logits) * (1 / heat).clamp(max=finfo.max)
    floor = torch.where(min_p > 0, natural_log(min_p.clamp(finfo.tiny, 1.0)), -torch.inf)
    kept = scaled >= floor.unsqueeze(1)
    if not bool(((top_k > 0) | (top_p < 1)).any()):
        return kept
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(logits.shape[1], device=logits.device)
    first = rank < torch.where(top_k > 0, top_k, logits.shape[1]).unsqueeze(1)
    units = torch.where(first, weight_units(scaled.gather(1, order)), 0)
    before = units.cumsum(-1) - units
    mass = (before + units)[:, -1].double() * top_p.double()
    first &= (before < mass.ceil().long().clamp(min=1).unsqueeze(1)) | ~(top_p < 1).unsqueeze(1)
    return kept & torch.zeros_like(kept).scatter(1, order, first)


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
    return gumbel(words)
