"""Correctness before speed: are these the greedy tokens of this model, as far as the arithmetic can tell?

The judge is the reference on the same weights, in wider arithmetic. It reads prompt and answer at once and looks, at
every position, how far the chosen token's logit lies below the best one. Zero everywhere: the same tokens. Within the
budget: the tokens differ by rounding. Beyond: wrong, and no figure of that contender is printed.

The budget is measured, not chosen: `noise` is the largest error of any logit that the reference itself makes in the
tested dtype; a contender may err twice as far, and a choice compares two logits, so a gap up to four times the noise
passes. Quantised weights choose other tokens for good reason: theirs must on average lie well nearer to the best than a
token taken at random.
"""

import copy
from dataclasses import dataclass

import torch

from octavo.bench.peers.sources import ModelSource, plain_model
from octavo.gpt.models.batch import dense_batch

QUANTISED = 0.25  # of a random token's gap, that of quantised weights may be on average
ROWS = 8  # of a batch are checked, spread over it, the first and the last among them
PROBE_TOKENS = 128  # on which the noise is measured


@dataclass(frozen=True)
class Verdict:
    status: str  # same, rounding, quantised or wrong
    detail: str


class Verifier:
    """Judges the answers of contenders that run in one dtype."""

    def __init__(self, source: ModelSource, dtype: str, device: torch.device, seed: int) -> None:
        self.device = device
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
        with torch.inference_mode():
            twin = plain_model(source, dtype, device)
            exact = torch.float64 if dtype == "float32" else torch.float32
            judge = copy.deepcopy(twin).to(exact)
            generator = torch.Generator().manual_seed(seed)
            length = min(PROBE_TOKENS, source.config.context_size)
            probe = torch.randint(source.config.vocab_size, (1, length), generator=generator).int().to(device)
            logits = judge.loss(probe).logits
            error = twin.loss(probe).logits.to(exact) - logits
            self.chance = float((logits.max(-1).values - logits.mean(-1)).mean())  # the gap of a random token
            self.budget = 4 * float(error.abs().max())
        self.model = twin if dtype == "float32" else judge  # float64 is for the noise only: it is slow

    def check(self, prompts: list[list[int]], answers: list[list[int]], same_weights: bool) -> Verdict:
        """Judge one answer a prompt; other weights than the reference's are quantised ones."""
        rows = spread_rows(len(prompts))
        gaps = [gap for row in rows for gap in self._gaps(prompts[row], answers[row])]
        agreeing = sum(gap == 0 for gap in gaps)
        counted = f"{agreeing} of {len(gaps)} tokens agree"
        if agreeing == len(gaps):
            return Verdict("same", f"all {len(gaps)} tokens")
        if not same_weights:
            mean, allowed = sum(gaps) / len(gaps), QUANTISED * self.chance
            status = "quantised" if mean <= allowed else "wrong"  # NaN is wrong
            return Verdict(status, f"{counted}, mean gap {mean:.2g} of {allowed:.2g} allowed")
        status = "rounding" if all(gap <= self.budget for gap in gaps) else "wrong"  # NaN is wrong
        return Verdict(status, f"{counted}, gap {max(gaps):.2g} of {self.budget:.2g} allowed")

    def compare(
        self, prompts: list[list[int]], answers: list[list[int]], alone: list[list[int]], exact: bool
    ) -> Verdict:
        """Judge answers beside those of the same requests run alone; what differs must be rounding, and never is on a
        backend that promises `exact` tokens."""
        other = [row for row in range(len(prompts)) if answers[row] != alone[row]]
        counted = f"{len(prompts) - len(other)} of {len(prompts)} requests as alone"
        if not other:
            return Verdict("same", counted)
        if exact:
            return Verdict("wrong", counted)
        verdict = self.check([prompts[row] for row in other], [answers[row] for row in other], same_weights=True)
        return Verdict(
            "rounding" if verdict.status != "wrong" else "wrong", f"{counted}; of the others {verdict.detail}"
        )

    @torch.inference_mode()
    def _gaps(self, prompt: list[int], answer: list[int]) -> list[float]:
        """At each token of the answer, how far its logit lies below the best; computed once, however many said it."""
        key = tuple(prompt), tuple(answer)
        if key not in self._known:
            token_ids = torch.tensor([[*prompt, *answer[:-1]]], dtype=torch.int32, device=self.device)
            hidden = self.model(dense_batch(token_ids))
            logits = self.model.logits(hidden[len(prompt) - 1 :])
            chosen = logits.gather(1, torch.tensor(answer, device=self.device).unsqueeze(1)).squeeze(1)
            self._known[key] = (logits.max(-1).values - chosen).tolist()
        return self._known[key]


def spread_rows(num_rows: int) -> list[int]:
    """Indices of the rows that are checked."""
    if num_rows <= ROWS:
        return list(range(num_rows))
    return sorted({round(i * (num_rows - 1) / (ROWS - 1)) for i in range(ROWS)})
