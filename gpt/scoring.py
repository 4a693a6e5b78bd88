"""Scoring: how likely a model finds a text, read window by window, without a cache."""

import math
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import dense_batch
from octavo.gpt.scheduler.validation import checked_ids

MAX_EXPONENT = math.log(sys.float_info.max)
LOGIT_ROWS = 256  # positions whose logits are held at once


class Score(NamedTuple):
    """How well the model predicts a text: nll is the mean over `num_tokens` predictions, in nats."""

    nll: float
    perplexity: float
    num_tokens: int


@torch.inference_mode()
def score(model: Model, ids: list[int], window: int, device: torch.device) -> Score:
    """Score `ids`; more than `window` of them are read in windows that overlap by half.

    The perplexity is infinite where a float cannot hold it. ValueError for fewer than two ids, for one outside the
    vocabulary, and where the model's logits are not numbers.
    """
    ids = checked_ids(ids, model.config.vocab_size)
    if len(ids) < 2:
        raise ValueError("score needs at least two tokens, one to predict the other from")
    total, start, scored = 0.0, 0, 1
    while scored < len(ids):
        end = min(start + window, len(ids))
        total += float(_losses(model, ids[start:end], device)[scored - start - 1 :].double().sum())
        start, scored = start + max(window // 2, 1), end
    nll = total / (len(ids) - 1)
    if math.isnan(nll):
        raise ValueError("the model's logits are not numbers (NaN), so it has no score")
    return Score(nll, math.exp(nll) if nll < MAX_EXPONENT else math.inf, len(ids) - 1)


def _losses(model: Model, ids: list[int], device: torch.device) -> Tensor:
    """Return the negative log-likelihood of each id but the first, float32 `[len(ids) - 1]`."""
    tokens = torch.tensor([ids], dtype=torch.int32, device=device)
    hidden = model(dense_batch(tokens), None)[:-1]
    targets = tokens[0, 1:].long()
    parts = zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
    return torch.cat([F.cross_entropy(model.logits(h).float(), t, reduction="none") for h, t in parts])
