"""What is run, all of it from one seed: the grid and the prompts of `decode`, and the requests that come to a server.

Lengths of requests are log-normal, so that most are short and a few are long, as in recorded conversations; the means
are those published for ShareGPT and Alpaca, the width is ours. A Poisson process does not wait for answers (open loop);
callers that each wait for an answer before they ask again make a closed loop.
"""

import math
import random
from dataclasses import dataclass

from octavo.gpt.models.config import ModelConfig

PREFILL_STEP = 2048  # prompt tokens of one step; the sequences prefilled first decode while the others are prefilled

CHECK = 0  # the repeat whose tokens are checked; timed repeats count from 1, each with prompts of its own


@dataclass(frozen=True)
class Effort:
    """A grid, and how long each point is measured: repeats go on until `seconds` are spent, within the two bounds."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    min_repeats: int
    max_repeats: int
    seconds: float
    new_tokens: int


EFFORTS = {
    ("cpu", "quick"): Effort((1, 8), (128,), 2, 4, 2.0, 17),
    ("cpu", "normal"): Effort((1, 8), (128, 512), 5, 9, 6.0, 33),
    ("cpu", "full"): Effort((1, 2, 4, 8, 16), (128, 512, 1024), 5, 9, 15.0, 65),
    ("cuda", "quick"): Effort((1, 64), (128, 1024), 3, 5, 1.0, 65),
    ("cuda", "normal"): Effort((1, 8, 64, 256), (128, 1024), 5, 9, 3.0, 129),
    ("cuda", "full"): Effort((1, 2, 4, 8, 16, 32, 64, 128, 256), (128, 256, 512, 1024), 9, 15, 8.0, 257),
}


@dataclass(frozen=True)
class GridPoint:
    """Prompts of `prompt_tokens` each, then `new_tokens` generated; the context is what the last steps see."""

    batch: int
    context: int
    prompt_tokens: int
    new_tokens: int


def at_least(least: int, **values: int) -> None:
    """ValueError that names the first of the values that is smaller."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name.replace('_', ' ')} must be at least {least}, not {value}")


def grid_point(config: ModelConfig, batch: int, context: int, new_tokens: int) -> GridPoint:
    """The prompt is `context` long, or as long as the window leaves room for; ValueError beyond the window.

    A batch that is prefilled in several steps generates as many tokens more.
    """
    window = config.context_size
    at_least(1, batch=batch)
    at_least(2, context=context, new_tokens=new_tokens)
    if context > window:
        raise ValueError(f"context {context} is over the model's window of {window}")
    new_tokens += batch * context // PREFILL_STEP
    prompt_tokens = min(context, window - new_tokens)
    if prompt_tokens < 1:
        raise ValueError(f"{new_tokens} new tokens leave no room for a prompt in the window of {window}")
    return GridPoint(batch, context, prompt_tokens, new_tokens)


def prompts(config: ModelConfig, point: GridPoint, seed: int, repeat: int) -> list[list[int]]:
    """One prompt a sequence, none beginning as any other of the run does, so that no prefix cache can help."""
    place, tokens = f"{seed}/{point.batch}/{point.context}/{repeat}", ordinary(config)
    return [random.Random(f"{place}/{row}").choices(tokens, k=point.prompt_tokens) for row in range(point.batch)]


def ordinary(config: ModelConfig) -> list[int]:
    """Token ids that begin or end no text."""
    special = {config.bos_id, *config.eos_ids}
    return [token_id for token_id in range(config.vocab_size) if token_id not in special]


@dataclass(frozen=True)
class Mix:
    """Mean lengths in tokens."""

    prompt: int
    output: int
    deviation: float = 1.0  # of a length's logarithm

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
