"""Log-probabilities in the two forms of OpenAI's API. JSON has no infinity: what is impossible is -9999, as in vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.gpt.llm import LLM
from octavo.gpt.outputs import Logprob

IMPOSSIBLE = -9999.0

Step = Mapping[int, Logprob] | None  # of the tokens reported at one position; None for a prompt's first


class Namer:
    """Names tokens by their text, or as `token_id:7` where the client asks so or there is no text."""

    def __init__(self, llm: LLM, by_id: bool | None) -> None:
        self._llm, self._by_id = llm, by_id

    def text(self, token_id: int) -> str:
        return self._llm.engine.text_of(token_id) or ""

    def name(self, token_id: int) -> str:
        return (None if self._by_id else self._llm.engine.text_of(token_id)) or f"token_id:{token_id}"

    def bytes(self, token_id: int) -> list[int] | None:
        tokenizer = self._llm.tokenizer
        known = tokenizer is not None and token_id < tokenizer.vocab_size
        return list(tokenizer.token_bytes(token_id)) if tokenizer is not None and known else None


def of_completion(ids: Sequence[int], steps: Sequence[Step], number: int, offset: int, namer: Namer) -> dict[str, Any]:
    """Return tokens with their log-probabilities, the `number` likeliest at each, and where each one's text begins.

    offset: where the first one begins, in characters of the choice's text.
    """
    tokens: list[str] = []
    chosen: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token_id, step in zip(ids, steps, strict=True):
        tokens.append(namer.name(token_id))
        chosen.append(None if step is None else finite(step[token_id].logprob))
        top.append(
            None if step is None else {namer.name(i): finite(e.logprob) for i, e in _top(step, token_id, number)}
        )
        offsets.append(offset)
        offset += len(namer.text(token_id))
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}


def of_chat(ids: Sequence[int], steps: Sequence[Step], number: int, namer: Namer) -> dict[str, Any]:
    """Return each token's log-probability with its `number` likeliest others, as a chat's choices have them."""

    def entry(token_id: int, one: Logprob) -> dict[str, Any]:
        return {"token": namer.name(token_id), "logprob": finite(one.logprob), "bytes": namer.bytes(token_id)}

    content = []
    for token_id, step in zip(ids, steps, strict=True):
        if step is not None:
            likeliest = [entry(i, e) for i, e in _top(step, token_id, number) if e.rank <= number]
            content.append({**entry(token_id, step[token_id]), "top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def of_prompt(steps: Sequence[Step] | None) -> list[dict[int, dict[str, Any]] | None] | None:
    """Return a prompt's log-probabilities as vLLM does, by token id."""
    if steps is None:
        return None
    return [None if step is None else {token_id: _shown(entry) for token_id, entry in step.items()} for step in steps]


def _shown(entry: Logprob) -> dict[str, Any]:
    return {"logprob": finite(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}


def _top(step: Mapping[int, Logprob], token_id: int, number: int) -> list[tuple[int, Logprob]]:
    """Return the likeliest entries of a step, best first, and the chosen one wherever it stands."""
    ordered = sorted(step.items(), key=lambda pair: pair[1].rank)
    return [(other, entry) for other, entry in ordered if entry.rank <= number or other == token_id]


def finite(value: float) -> float:
    """Return a log-probability that JSON can say."""
    return max(value, IMPOSSIBLE)
