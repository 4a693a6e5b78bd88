"""Sampling on a CPU: the same tokens as the reference, with no full sort and no noise for filtered ids.

Each row finds its kept ids by partial selection, and only these few ids get noise. A row without filters needs noise
for the whole vocabulary. Philox runs on NumPy's arrays, whose operators start sooner than PyTorch's.
"""

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.cpu.linear import linear
from octavo.kernels.sampling_math import gap_below, gumbel, log_softmax, natural_log, philox, weights_q44
from octavo.kernels.weights import Weight


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row: see the reference."""
    logits = logits.float()
    token_ids = _choose(logits, temperature, top_k, top_p, min_p, seeds, positions)
    logprobs = log_softmax(logits).gather(1, token_ids.clamp(min=0).long().unsqueeze(1)).squeeze(1)
    return token_ids, torch.where(token_ids < 0, torch.nan, logprobs)


def lm_head_sample(hidden: Tensor, weight: Weight, temperature: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """The ids that `sample` chooses from `linear(hidden, weight)` without filters: see the reference."""
    off = torch.zeros_like(temperature)
    return _choose(linear(hidden, weight).float(), temperature, off, 1 + off, off, seeds, positions)


def top_logprobs(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` most likely ids of each row and their log-probabilities, best first: see the reference."""
    logits = logits.float()
    valid = logits.amax(-1, keepdim=True) > -torch.inf
    known = torch.where(valid, logits, 0)
    ids = torch.stack([_ranked(row, _likeliest(row, num)) for row in known])
    logprobs = log_softmax(logits).gather(1, ids)
    return torch.where(valid, ids, -1).int(), torch.where(valid, logprobs, torch.nan)


def _choose(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    token_ids = torch.from_numpy(logits.numpy().argmax(-1))  # several times the speed of torch's
    valid = logits.gather(1, token_ids.unsqueeze(1)).squeeze(1) > -torch.inf  # a NaN is the largest of its row
    temperature = temperature.clamp(max=torch.finfo(torch.float32).max)
    for row in ((temperature > 0) & valid).nonzero()[:, 0].tolist():
        ids = _kept_ids(logits[row], temperature[row], int(top_k[row]), top_p[row], min_p[row])
        noise = _noise(int(seeds[row]), int(positions[row]), ids, len(logits[row]))
        score = (logits[row] if ids is None else logits[row][ids]).double() + temperature[row].double() * noise.double()
        best = score.argmax()
        token_ids[row] = best if ids is None else ids[best]
    return torch.where(valid, token_ids, -1).int()


def _kept_ids(logits: Tensor, temperature: Tensor, top_k: int, top_p: Tensor, min_p: Tensor) -> Tensor | None:
    """The ids of a row `[vocab_size]` that pass top-k, top-p and min-p, ascending; None if all do."""
    is_filtered = top_k > 0 or float(top_p) < 1
    if not is_filtered and float(min_p) <= 0:
        return None
    finfo = torch.finfo(torch.float32)
    scaled = gap_below(logits) * (1 / temperature).clamp(max=finfo.max)
    ids = _likeliest(logits, top_k) if 0 < top_k < len(logits) else _places(logits)
    if float(top_p) < 1:
        ids = _nucleus(logits, ids, weights_q44(scaled[ids]), top_p)
    if float(min_p) > 0:
        ids = ids[scaled[ids] >= natural_log(min_p.clamp(finfo.tiny, 1.0).reshape(1))]
    return None if len(ids) == len(logits) else ids


def _likeliest(logits: Tensor, number: int) -> Tensor:
    """The ids of the `number` largest, ascending; ties go to the lower id."""
    values = logits.numpy()
    cut = np.partition(values, -number)[-number]
    kept = values > cut
    kept[np.flatnonzero(values == cut)[: number - np.count_nonzero(kept)]] = True
    return torch.from_numpy(np.flatnonzero(kept))


def _ranked(logits: Tensor, ids: Tensor) -> Tensor:
    """Ascending ids in the order of their logits, the largest first; ties keep the lower id first."""
    return ids[logits[ids].sort(descending=True, stable=True).indices]


def _nucleus(logits: Tensor, ids: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """Of these ids, the likeliest that together weigh top_p of all, ascending.

    Weights fall with the logits, so sorted by themselves they tell how many ids that is.
    """
    wanted = (weights.sum().double() * top_p.double()).ceil().long().clamp(min=1)
    falling = np.sort(weights.numpy())[::-1]
    number = int(np.searchsorted(np.cumsum(falling) - falling, int(wanted)))
    return ids if number >= len(ids) else ids[_likeliest(logits[ids], number)]


def _noise(seed: int, position: int, ids: Tensor | None, vocab_size: int) -> Tensor:
    """Gumbel noise of these ids, or of the whole vocabulary, float32."""
    if ids is not None and 4 * len(ids) > vocab_size:  # a call of Philox is noise for four ids
        return _noise(seed, position, None, vocab_size)[ids]
    group = np.arange(-(-vocab_size // 4)) if ids is None else ids.numpy() // 4
    zero = np.zeros_like(group)
    counter = group, zero + (position & 0xFFFFFFFF), zero, zero
    words = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    chosen = np.stack(words, 1).reshape(-1)[:vocab_size] if ids is None else np.choose(ids.numpy() % 4, words)
    return gumbel(torch.from_numpy(chosen))


def _places(x: Tensor) -> Tensor:
    """0, 1, 2 ... along x, int64."""
    return torch.arange(len(x), dtype=torch.int64, device=x.device)
