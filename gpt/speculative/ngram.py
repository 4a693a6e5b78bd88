"""NGram: a sequence goes on as it did where its newest tokens stood before, in its prompt or its output.

Prompt lookup decoding (Saxena 2023), as vLLM's method "ngram". No model is asked, and every token is indexed once.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.gpt.options.checks import integer
from octavo.gpt.scheduler.sequence import Sequence

if TYPE_CHECKING:  # what a caller imports to choose needs no PyTorch
    from octavo.gpt.speculative.proposer import Target

CANDIDATES = 16  # earlier places that are compared, the newest first
MOST_TOKENS = 64


@dataclass(frozen=True)
class NGram:
    """Speculate by the request's own text: `LLM(speculative=NGram(num_tokens=4))`.

    num_tokens: guessed at a time, 1 to 64. min_match: newest tokens, at least, that must stand together earlier in the
    text; the place where the most do is taken, max_match at most, the latest of several. ValueError names what makes no
    sense.
    """

    num_tokens: int = 4
    min_match: int = 3
    max_match: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", integer("num_tokens", self.num_tokens, 1, MOST_TOKENS))
        object.__setattr__(self, "min_match", integer("min_match", self.min_match, 1, MOST_TOKENS))
        object.__setattr__(self, "max_match", integer("max_match", self.max_match, self.min_match, MOST_TOKENS))

    def proposer(self, target: "Target") -> "NGramProposer":
        return NGramProposer(self)


@dataclass(eq=False, slots=True)
class _Index:
    """Where each run of `min_match` tokens ended last in a text, and for each place where the same run ended before."""

    text: list[int]
    newest: dict[tuple[int, ...], int] = field(default_factory=dict)
    before: list[int] = field(default_factory=list)  # by the end of a run; -1: nowhere


class NGramProposer:
    """Looks up the newest tokens of each sequence in its own text."""

    def __init__(self, options: NGram) -> None:
        self.options = options
        self.num_tokens = options.num_tokens
        self._indices: dict[int, _Index] = {}  # by seq_id

    def propose(self, sequences: Seq[Sequence], limits: Seq[int]) -> list[list[int]]:
        return [self._propose(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def free(self, seq_id: int) -> None:
        self._indices.pop(seq_id, None)

    def reset(self) -> None:
        self._indices.clear()

    def _propose(self, sequence: Sequence, limit: int) -> list[int]:
        index = self._indices.get(sequence.seq_id)
        if index is None:
            index = self._indices[sequence.seq_id] = _Index(list(sequence.prompt))
        index.text += sequence.output[len(index.text) - len(sequence.prompt) :]
        self._extend(index)
        found = self._longest_match(index)
        if found < 0:
            return []
        ahead = index.text[found + 1 :]  # and then the same again: a text that repeats has a period
        return [ahead[i % len(ahead)] for i in range(limit)]

    def _extend(self, index: _Index) -> None:
        """Index the runs that end in tokens which are new."""
        size, text = self.options.min_match, index.text
        for end in range(len(index.before), len(text)):
            run = tuple(text[max(0, end + 1 - size) : end + 1])
            index.before.append(index.newest.get(run, -1))
            index.newest[run] = end

    def _longest_match(self, index: _Index) -> int:
        """Where the newest tokens ended before, the most of them; -1: nowhere."""
        text, best, longest = index.text, -1, self.options.min_match - 1
        last = len(text) - 1
        place = index.before[last] if last + 1 >= self.options.min_match else -1
        for _ in range(CANDIDATES):
            if place < 0 or longest == self.options.max_match:
                break
            length = self.options.min_match
            while length < self.options.max_match and length <= place and text[place - length] == text[last - length]:
                length += 1
            if length > longest:
                best, longest = place, length
            place = index.before[place]
        return best
