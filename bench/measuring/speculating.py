"""Decoding with guesses against decoding without, on texts that repeat and on texts that do not.

Both ways take turns, so that a machine which slows down slows both. Every text must come out the same both ways.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.outputs import RequestOutput

TASKS = Path(__file__).with_name("tasks.json")  # name -> what is asked in a chat
COLUMNS = "text", "tokens", "plain tokens/s", "guessing tokens/s", "speed-up", "right guesses", "tokens a step", "same"


class Row(NamedTuple):
    """What one text showed."""

    name: str
    num_tokens: int
    plain: float  # seconds a token, the first of a text left out
    guessing: float
    ratio: float  # median of the repeats' plain / guessing
    num_proposed: int
    num_accepted: int
    num_steps: int
    is_same: bool

    def cells(self) -> list[str]:
        right = f"{self.num_accepted} of {self.num_proposed}"
        rates = f"{1 / self.plain:.1f}", f"{1 / self.guessing:.1f}", f"{self.ratio:.2f}x"
        per_step = f"{1 + self.num_accepted / max(1, self.num_steps):.2f}"
        return [self.name, str(self.num_tokens), *rates, right, per_step, "yes" if self.is_same else "NO"]


def speculate(console: Console, model: str, dtype: str, weights: str, who: str, new_tokens: int, repeats: int) -> int:
    """Print a line for each text; 1 if one came out otherwise with guesses. ValueError for a bad `who`."""
    table = Table(*COLUMNS, title=f"{model}, {dtype} {weights}, guesses by {who}")
    with ExitStack() as stack:
        plain, guessing = (
            stack.enter_context(LLM(model, dtype=dtype, weights=weights, speculative=each)) for each in (None, who)
        )
        tasks = json.loads(TASKS.read_text()).items()
        rows = [measure(plain, guessing, name, question, new_tokens, repeats) for name, question in tasks]
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    return int(not all(row.is_same for row in rows))


def measure(plain: LLM, guessing: LLM, name: str, question: str, new_tokens: int, repeats: int) -> Row:
    """Answer the question both ways in turn; the first turn is the warm-up, but for its tokens."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    ids = plain.encode_chat([{"role": "user", "content": question}])
    before = guessing.stats()
    pairs = [[llm.generate(ids, params, use_tqdm=False)[0] for llm in (plain, guessing)] for _ in range(repeats + 1)]
    after = guessing.stats()
    proposed, accepted, decoded = (
        int(after[f"tokens_{name}"] - before[f"tokens_{name}"]) for name in ("proposed", "accepted", "decoded")
    )
    seconds = [[seconds_per_token(request) for request in pair] for pair in pairs[1:]]
    texts = {tuple(request.outputs[0].token_ids) for pair in pairs for request in pair}
    first, second = (median(each) for each in zip(*seconds, strict=True))
    ratio = median(ours / guessed for ours, guessed in seconds)
    return Row(name, new_tokens, first, second, ratio, proposed, accepted, decoded - accepted, len(texts) == 1)


def seconds_per_token(request: RequestOutput) -> float:
    """Of all tokens but the first."""
    times = request.metrics
    return (times.last_token_ts - times.first_token_ts) / max(1, times.num_generation_tokens - 1)
