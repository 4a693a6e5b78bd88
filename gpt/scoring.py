"""How likely a model finds a text, read window by window, or its next token; both without a cache."""

import math
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.gpt.engine_thread import EngineThread
from octavo.gpt.models.base import Model
from octavo.gpt.models.batch import dense_batch
from octavo.gpt.options.checks import integer
from octavo.gpt.options.lora import Lora
from octavo.gpt.prompts import EncodesPrompts, Prompt
from octavo.gpt.runner.logprobs import token_logprobs
from octavo.gpt.sampling_params import MAX_LOGPROBS, SamplingParams
from octavo.gpt.scheduler.validation import checked_ids
from octavo.kernels.ops import keep_mask

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
        total += math.fsum(_losses(model, ids[start:end], device)[scored - start - 1 :].tolist())
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
    return torch.cat([-token_logprobs(model.ops, model.logits(h), t.unsqueeze(1))[0].squeeze(1) for h, t in parts])


class Candidate(NamedTuple):
    """A token that may come next: its probability in the model, after the temperature, and after the filters.

    What a filter drops is 0 at last; at temperature 0 all is the most likely token's.
    """

    token_id: int
    raw: float
    tempered: float
    kept: float


class Draw(NamedTuple):
    """The next token's candidates, most likely first, and how many of them the filters keep."""

    candidates: list[Candidate]
    num_kept: int


@torch.inference_mode()
def draw(model: Model, ids: list[int], params: SamplingParams, num: int, device: torch.device) -> Draw:
    """Return the `num` most likely next tokens of a text, and what temperature, top_k, top_p and min_p make of them."""
    tokens = torch.tensor([ids], dtype=torch.int32, device=device)
    logits = model.logits(model(dense_batch(tokens), None)[-1:]).float()
    settings = (params.temperature, max(params.top_k, 0), params.top_p, params.min_p)
    temperature, top_k, top_p, min_p = (torch.tensor([value], dtype=torch.float32, device=device) for value in settings)
    if params.temperature > 0:
        keep = keep_mask(logits, temperature.unsqueeze(1), top_k.int(), top_p, min_p)
        tempered = torch.softmax(logits.double() / params.temperature, -1)
    else:
        keep = F.one_hot(logits.argmax(-1), logits.shape[1]).bool()
        tempered = keep.double()
    kept = tempered.masked_fill(~keep, 0.0)
    columns = (torch.softmax(logits.double(), -1), tempered, kept / kept.sum())
    order = logits[0].sort(descending=True, stable=True).indices[:num]
    values = (column[0, order].tolist() for column in columns)
    return Draw([Candidate(*each) for each in zip(order.tolist(), *values, strict=True)], int(keep.sum()))


class ScoresTexts(EncodesPrompts):
    """The part of an LLM that reads texts without the engine's cache."""

    thread: EngineThread
    device: torch.device

    def draw(self, prompt: Prompt, sampling_params: SamplingParams, n: int = 10, lora: Lora = None) -> Draw:
        """Return the n most likely next tokens: how likely in the model, after the temperature, after the filters."""
        ids = self.engine.check(self.encode(prompt), sampling_params)
        n = integer("n", n, 1, MAX_LOGPROBS)
        return self.thread.call(draw, self._model_with(lora), ids, sampling_params, n, self.device)

    def score(self, prompt: Prompt, lora: Lora = None) -> Score:
        """Score how likely the model finds a text; beyond the context, it is read in windows that overlap by half."""
        window = self.config.max_model_len
        return self.thread.call(score, self._model_with(lora), self.encode(prompt), window, self.device)

    def _model_with(self, lora: Lora) -> Model:
        return self.thread.call(self.engine.residence.model_with, lora)
