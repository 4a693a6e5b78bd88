"""What is run: prompts from a seeded generator, the grid of batch sizes and contexts, how long each cell may take."""

import random
from dataclasses import dataclass

from octavo.bench.measuring.loads import ordinary
from octavo.gpt.models.config import ModelConfig

PREFILL_STEP = 2048  # prompt tokens of one step; who is prefilled first decodes while the others are prefilled

CHECK = 0  # the repeat whose tokens are checked; timed repeats count from 1, each with prompts of its own


@dataclass(frozen=True)
class Budget:
    """How hard each cell is measured. Repeats go on until `seconds` are spent, within the two bounds."""

    min_repeats: int
    max_repeats: int
    seconds: float
    new_tokens: int


@dataclass(frozen=True)
class Grid:
    batches: tuple[int, ...]
    contexts: tuple[int, ...]


EFFORTS = {
    ("cpu", "quick"): Budget(2, 4, 2.0, 17),
    ("cpu", "normal"): Budget(5, 9, 6.0, 33),
    ("cpu", "full"): Budget(5, 9, 15.0, 65),
    ("cuda", "quick"): Budget(3, 5, 1.0, 65),
    ("cuda", "normal"): Budget(5, 9, 3.0, 129),
    ("cuda", "full"): Budget(9, 15, 8.0, 257),
}

GRIDS = {
    ("cpu", "quick"): Grid((1, 8), (128,)),
    ("cpu", "normal"): Grid((1, 8), (128, 512)),
    ("cpu", "full"): Grid((1, 2, 4, 8, 16), (128, 512, 1024)),
    ("cuda", "quick"): Grid((1, 64), (128, 1024)),
    ("cuda", "normal"): Grid((1, 8, 64, 256), (128, 1024)),
    ("cuda", "full"): Grid((1, 2, 4, 8, 16, 32, 64, 128, 256), (128, 256, 512, 1024)),
}


@dataclass(frozen=True)
class Cell:
    """Prompts of `prompt_tokens` each, then `new_tokens` generated; the context is what the last steps see."""

    batch: int
    context: int
    prompt_tokens: int
    new_tokens: int


def cell(config: ModelConfig, batch: int, context: int, new_tokens: int) -> Cell:
    """The prompt is `context` long, or as long as the window leaves room for; ValueError beyond the window.

    A batch that is prefilled in several steps generates as many tokens more.
    """
    window = config.context_size
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if context < 2:
        raise ValueError(f"context must be at least 2, not {context}")
    if context > window:
        raise ValueError(f"context {context} is over the model's window of {window}")
    if new_tokens < 2:
        raise ValueError(f"new tokens must be at least 2, not {new_tokens}")
    new_tokens += batch * context // PREFILL_STEP
    prompt_tokens = min(context, window - new_tokens)
    if prompt_tokens < 1:
        raise ValueError(f"{new_tokens} new tokens leave no room for a prompt in the window of {window}")
    return Cell(batch, context, prompt_tokens, new_tokens)


def prompts(config: ModelConfig, cell: Cell, seed: int, repeat: int) -> list[list[int]]:
    """One prompt a sequence, none beginning as any other of the run does, so that no prefix cache can help."""
    place = f"{seed}/{cell.batch}/{cell.context}/{repeat}"
    return [_prompt(config, cell.prompt_tokens, f"{place}/{row}") for row in range(cell.batch)]


def _prompt(config: ModelConfig, length: int, seed: str) -> list[int]:
    return random.Random(seed).choices(ordinary(config), k=length)
