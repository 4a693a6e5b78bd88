"""What comes to a server, all of it from one seed: requests of mixed lengths, and the moments at which they arrive.

Lengths are log-normal, so that most requests are short and a few are long, as in recorded conversations; the means are
those published for ShareGPT and Alpaca, the width is ours. A Poisson process does not wait for answers (open loop);
callers that each wait for an answer before they ask again make a closed loop.
"""

import math
import random
from dataclasses import dataclass

from octavo.bench.measuring.workloads import ordinary
from octavo.gpt.models.config import ModelConfig

DEVIATION = 1.0  # of a length's logarithm


@dataclass(frozen=True)
class Mix:
    """Mean lengths in tokens."""

    prompt: int
    output: int
    deviation: float = DEVIATION

    def draw(self, generator: random.Random, mean: int) -> int:
        return max(1, round(generator.lognormvariate(math.log(mean) - self.deviation**2 / 2, self.deviation)))


MIXES = {"sharegpt": Mix(161, 338), "alpaca": Mix(19, 58)}
FIXED = "fixed:"  # `fixed:128:64`: every request alike


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Load:
    """open: `level` requests a second. closed: `level` callers."""

    kind: str
    level: float

    def __str__(self) -> str:
        unit = "requests/s" if self.kind == "open" else "caller" if self.level == 1 else "callers"
        return f"{self.level:g} {unit}"


def mix_of(name: str) -> Mix:
    """ValueError for a name that is no mix."""
    if name in MIXES:
        return MIXES[name]
    prompt, _, output = name.removeprefix(FIXED).partition(":")
    if not name.startswith(FIXED) or not (prompt.isdecimal() and output.isdecimal()):
        raise ValueError(f"mix must be {', '.join(MIXES)} or {FIXED}PROMPT:OUTPUT in tokens, not {name!r}")
    return Mix(int(prompt), int(output), 0.0)


def requests(config: ModelConfig, mix: Mix, number: int, seed: int) -> list[Request]:
    """Prompts of random tokens, cut at half the window, outputs of at least two tokens, cut at what is left of it."""
    window = config.context_size
    if mix.deviation == 0 and not (mix.prompt >= 1 and mix.output >= 2 and mix.prompt + mix.output <= window):
        name = f"{FIXED}{mix.prompt}:{mix.output}"
        raise ValueError(f"mix {name} needs at least 1 and 2 tokens, both together within the window of {window}")
    generator = random.Random(f"requests/{seed}")
    allowed, found = ordinary(config), []
    for _ in range(number):
        length, new_tokens = mix.draw(generator, mix.prompt), max(2, mix.draw(generator, mix.output))
        if mix.deviation:
            length = min(length, window // 2)
        found.append(Request(generator.choices(allowed, k=length), min(new_tokens, window - length)))
    return found


def arrivals(rate: float, number: int, seed: int) -> list[float]:
    """Seconds from the start at which each request is due; the first comes at once."""
    generator = random.Random(f"arrivals/{seed}")
    moments = [0.0]
    while len(moments) < number:
        moments.append(moments[-1] + generator.expovariate(rate))
    return moments
