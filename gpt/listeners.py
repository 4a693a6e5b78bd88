"""Listeners: how a caller's thread waits for what the engine's thread does to its requests."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from queue import SimpleQueue
from typing import Any

from octavo.gpt.outputs import RequestOutput

LOG_INTERVAL = 5.0  # seconds between lines of progress in a log


class Ends:
    """Listens to requests; something comes into its queue when one of them ends."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int] = SimpleQueue()

    def __call__(self, request: RequestOutput) -> None:
        if request.finished:
            self.queue.put(request.request_id)


class Pieces:
    """Listens to a request of one completion; the pieces of its text come into its queue, and None at the end."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[str | None] = SimpleQueue()
        self._num_seen = 0

    def __call__(self, request: RequestOutput) -> None:
        pieces = request.outputs[0].pieces()
        for piece in filter(None, pieces[self._num_seen :]):
            self.queue.put(piece)
        self._num_seen = len(pieces)
        if request.finished:
            self.queue.put(None)


def progress(requests: list[RequestOutput], wanted: bool | Callable[..., Any]) -> Iterator[RequestOutput]:
    """Yield the requests, with tqdm's bar where there are several: in a terminal, a notebook or a log.

    wanted: whether to show it, or what makes the bar in place of `tqdm.auto.tqdm`, with its arguments.
    """
    if not wanted or (wanted is True and len(requests) < 2):
        yield from requests
        return
    make = wanted if callable(wanted) else import_module("tqdm.auto").tqdm  # imported where a bar is shown at all
    interval = 0.1 if sys.stderr is not None and sys.stderr.isatty() else LOG_INTERVAL
    with make(total=len(requests), desc="Processed prompts", mininterval=interval) as bar:
        for request in requests:
            yield request
            bar.update(1)
