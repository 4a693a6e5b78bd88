"""TextStream: decode tokens to text that never has to be taken back, cut at the first stop string."""

import codecs
from collections.abc import Set

from octavo.gpt.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Decodes one completion as it grows. Text that may yet become a stop string is held back in `_pending`.

    Ids in `silent_ids` (those that end the request) give no text. A stop string counts where the completion's
    `min_tokens`-th token or a later one completes it; the text ends before it, or with it where `includes_stop`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: tuple[str, ...] = (),
        skip_special_tokens: bool = True,
        silent_ids: Set[int] = frozenset(),
        min_tokens: int = 0,
        includes_stop: bool = False,
    ) -> None:
        self._tokenizer, self._skips_special = tokenizer, skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stop_strings
        self._silent_ids = silent_ids
        self._min_tokens = min_tokens
        self._includes_stop = includes_stop
        self._pending = ""
        self._num_early = 0  # characters of it that came before `min_tokens`: no stop string may end among them
        self.stopped_by: str | None = None

    def push(self, token_id: int, number: int) -> str:
        """Return the text settled by the completion's `number`-th token; `stopped_by` names a stop string found."""
        if token_id in self._silent_ids or token_id >= self._tokenizer.vocab_size:
            return ""
        if self._skips_special and self._tokenizer.is_special(token_id):
            return ""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        return self._settle(text, number >= self._min_tokens) if self._stops else text

    def flush(self) -> str:
        """Return the text still held back, when no more tokens come; U+FFFD if they stop inside a character."""
        if self.stopped_by is not None:
            return ""
        text = self._pending + self._utf8.decode(b"", final=True)
        self._pending = ""
        return text

    def _settle(self, new: str, may_stop: bool) -> str:
        text = self._pending + new
        if not may_stop:
            self._num_early = len(text)
        starts = [(text.find(stop, max(self._num_early - len(stop) + 1, 0)), stop) for stop in self._stops]
        if found := [(start, stop) for start, stop in starts if start >= 0]:
            end, self.stopped_by = min(found, key=lambda pair: pair[0])
            end += len(self.stopped_by) if self._includes_stop else 0
            self._pending = ""
            return text[:end]
        keep = self._possible_stop(text)
        settled = len(text) - keep
        self._pending = text[settled:]
        self._num_early = max(self._num_early - settled, 0)
        return text[:settled]

    def _possible_stop(self, text: str) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
