"""AllOrNothing: a change of an engine's books that is cut off anywhere leaves none of it behind."""

from typing import Any, Protocol


class HasBooks(Protocol):
    def recover(self, message: str, error: BaseException | None = None) -> None: ...


class AllOrNothing:
    """Start an engine's books anew if the change of them that runs inside is cut off anywhere.

    A generator would not do: interrupted between its two halves it is thrown away with an error of its own.
    """

    def __init__(self, engine: HasBooks) -> None:
        self.engine = engine

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self.engine.recover(str(error) or type(error).__name__, error)
