"""The masks of a step: which ids each row may sample, where some row's output has to have a form."""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from octavo.gpt.runner.transfer import array_to_device
from octavo.gpt.scheduler.sequence import Sequence

EVERY = -1  # a word that allows all of its ids


def allowed_words(rows: Seq[tuple[Sequence, Seq[int]]], vocab_size: int, device: torch.device) -> Tensor | None:
    """Return `ops.sample`'s mask `[num_rows, ceil(vocab_size / 32)]` int32; None where every row may sample every id.

    rows: sequences with guesses of their next tokens; a sequence has a row, and one more behind it for each guess.
    """
    if all(sequence.guide is None for sequence, _ in rows):
        return None
    words = np.full((sum(1 + len(guess) for _, guess in rows), -(-vocab_size // 32)), EVERY, np.int32)
    first = 0
    for sequence, guess in rows:
        last = first + 1 + len(guess)
        if sequence.guide is not None:
            sequence.guide.look_ahead(guess, words[first:last])
        first = last
    return array_to_device(words, device)
