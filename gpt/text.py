"""TextStream: tokens in, text out that never has to be taken back, cut at the first stop string."""

from octavo.gpt.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Decodes one completion as it grows. Text that may yet become a stop string is held back in `_pending`."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: tuple[str, ...], skip_special_tokens: bool) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens)
        self._stops = stop_strings
        self._pending = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """The text this token settles; after a stop string, `stopped_by` names it."""
        return self._settle(self._decoder.push(token_id), may_stop)

    def flush(self) -> str:
        """What was still held back, when no more tokens come."""
        text = self._settle(self._decoder.flush(), may_stop=True) + self._pending
        self._pending = ""
        return text

    def _settle(self, new: str, may_stop: bool) -> str:
        text = self._pending + new
        found = [(text.find(stop), stop) for stop in self._stops if stop in text] if may_stop else []
        if found:
            end, self.stopped_by = min(found, key=lambda pair: pair[0])
            self._pending = ""
            return text[:end]
        keep = self._possible_stop(text)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
