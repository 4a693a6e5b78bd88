"""The sampling ops in plain PyTorch: the part of the specification that turns logits into tokens.

A choice is compared exactly, so the arithmetic behind it is pinned to the bit: logarithm and exponential are sums and
products of float32 in a fixed order, top-p adds integers, scores are float64. Whatever computes these functions, on
any machine and in any order of the vocabulary, chooses the same token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def lm_head_sample(hidden: Tensor, weight: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The LM head and an unfiltered draw in one: the ids that `sample` chooses from `linear(hidden, weight)`.

    hidden `[num_seqs, dim]`, weight `[vocab_size, dim]`; temperature, seeds, positions as in `sample`, no filter.
    Returns token_ids `[num_seqs]` int32, -1 where a row's logits have a NaN or none above -inf.
    """
    off = torch.zeros_like(temperature)
    return sample(F.linear(hidden, weight), temperature, off.int(), 1 + off, off, seeds, positions)[0]


def gap_below(logits: Tensor) -> Tensor:
    """`logit - max` of each row; 0 at the maximum, even at +inf."""
    peak = logits.amax(-1, keepdim=True)
    return torch.where(logits == peak, 0.0, logits - peak)


def log_softmax(logits: Tensor) -> Tensor:
    """log_softmax over the last dimension; where a row has +inf, its mass lies there."""
    gap = gap_below(logits)
    return gap - gap.exp().sum(-1, keepdim=True).log()


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


# Top-p sums weights in units of 2^-44 of the largest: integers add in any order to the same bits.
TOP_P_UNIT = 2.0**44


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


def gumbel(words: Tensor) -> Tensor:
    """The noise that random words, int64 in [0, 2^32), stand for."""
    uniform = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)
    exponential = -natural_log(1 - uniform, -uniform)
    return -natural_log(exponential)


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


# Minimax fits, lowest power first: (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2), sqrt(2)] - 1, and
# (exp(r) - 1 - r) / r^2 on [-log(2) / 2, log(2) / 2].
LOG_FIT = (0.33333910, -0.25001338, 0.19963063, -0.16577585, 0.14914767, -0.14267486, 0.087004356)
EXP_FIT = (0.49999994, 0.16666521, 0.041668389, 0.0083687166, 0.0013814599)


def natural_log(x: Tensor, x_minus_1: Tensor | None = None) -> Tensor:
    """log of positive normal float32, to about an ulp, in float32 sums and products: the same bits everywhere.

    Given `x - 1` as it was before x was rounded, this is log1p of it.
    """
    bits = x.view(torch.int32) - 0x3F3504F3  # counted from sqrt(1/2), so that the mantissa lies about 1
    exponent = bits >> 23
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1
    if x_minus_1 is not None:
        f = torch.where(exponent == 0, x_minus_1, f)
    square = f * f
    return exponent.float() * 0.69314718 + (f + (f * square * _polynomial(LOG_FIT, f) - 0.5 * square))


def weight_units(scaled: Tensor) -> Tensor:
    """`exp(scaled)` for scaled <= 0 in whole units of 2^-44, int64: exp to about an ulp, the same bits everywhere."""
    x = scaled.clamp(min=-64.0)  # below half a unit
    power = (x * 1.4426950 + 0.5).floor()
    r = x - power * 0.693359375 - power * -2.1219444e-4  # log(2) in two parts, the first product exact
    exp = r * r * _polynomial(EXP_FIT, r) + r + 1
    return ((exp.view(torch.int32) + (power.int() << 23)).view(torch.float32) * TOP_P_UNIT).long()


def _polynomial(fit: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, fit[-1])
    for coefficient in reversed(fit[:-1]):
        value = value * x + coefficient
    return value
