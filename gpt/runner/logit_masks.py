"""LogitMasks: which ids a sequence may sample next, by its allowed ids and its bad words.

A bad word's last token is banned where the newest output tokens are its others. The device compares them, so the host
need not know the newest token to start the next step.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from octavo.gpt.runner.transfer import to_device
from octavo.gpt.sampling_params import SamplingParams, as_ids
from octavo.gpt.scheduler.sequence import Sequence

ANY = -2  # in place of tokens before a word shorter than the longest; -1 is in place of those before the output


def has_masks(params: SamplingParams) -> bool:
    return params.allowed_token_ids is not None or bool(params.bad_words)


class LogitMasks:
    """What is kept on the device for each sequence that has masks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._banned: dict[int, Tensor] = {}  # seq_id -> bool [vocab_size]: all but the allowed ids
        self._words: dict[int, tuple[Tensor, Tensor]] = {}  # seq_id -> beginnings [num_words, length], last ids
        self._tails: dict[int, Tensor] = {}  # seq_id -> the newest output ids [length] int64

    def apply(self, logits: Tensor, sequence: Sequence, ahead: Seq[int] = ()) -> None:
        """Make the logits `[vocab_size]` of what must not come next -inf, in place; after some guesses, if so asked."""
        if sequence.params.allowed_token_ids is not None:
            logits.masked_fill_(self._banned_ids(sequence, logits.shape[0]), -torch.inf)
        if sequence.bad_words:
            beginnings, last_ids = self._word_tensors(sequence)
            tail = self._tails[sequence.seq_id]
            if ahead:
                tail = torch.cat([tail, self._indices(list(ahead))])[len(ahead) :]
            ends = ((beginnings == tail) | (beginnings == ANY)).all(1)
            limits = torch.where(ends, -torch.inf, torch.inf).to(logits.dtype)
            logits.scatter_reduce_(0, last_ids, limits, "amin")  # exact in any order, however many words end alike

    def note(self, token_id: Tensor, sequence: Sequence) -> None:
        """Take the sequence's newest token, int32 `[1]`."""
        tail = self._tails.get(sequence.seq_id)
        if tail is not None:
            self._tails[sequence.seq_id] = torch.cat([tail, token_id.long()])[1:]

    def free(self, seq_id: int) -> None:
        for kept in (self._banned, self._words, self._tails):
            kept.pop(seq_id, None)

    def reset(self) -> None:
        for kept in (self._banned, self._words, self._tails):
            kept.clear()

    def _banned_ids(self, sequence: Sequence, vocab_size: int) -> Tensor:
        if sequence.seq_id not in self._banned:
            banned = torch.ones(vocab_size, dtype=torch.bool, device=self.device)
            banned.index_fill_(0, self._indices(list(as_ids(sequence.params.allowed_token_ids))), False)
            self._banned[sequence.seq_id] = banned
        return self._banned[sequence.seq_id]

    def _word_tensors(self, sequence: Sequence) -> tuple[Tensor, Tensor]:
        if sequence.seq_id not in self._words:
            length = max(map(len, sequence.bad_words)) - 1
            beginnings = [[ANY] * (length + 1 - len(word)) + list(word[:-1]) for word in sequence.bad_words]
            last_ids = self._indices([word[-1] for word in sequence.bad_words])
            self._words[sequence.seq_id] = self._indices(beginnings).view(len(beginnings), length), last_ids
            self._tails[sequence.seq_id] = self._indices([-1] * length)
        return self._words[sequence.seq_id]

    def _indices(self, values: list) -> Tensor:
        return to_device(values, torch.int64, self.device)
