"""Interrupts at a chosen line: a KeyboardInterrupt, as Ctrl-C raises it, at the n-th line of octavo.gpt that runs."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import octavo.gpt

ROOT = str(Path(octavo.gpt.__file__).parent)


class LineCounter:
    """Counts the lines of octavo.gpt that a thread executes, and raises at line number `target`, once."""

    def __init__(self, target: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.target, self.error = target, error
        self.count = 0
        self.place = ""

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(ROOT) else None

    def _line(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.target:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                sys.settrace(None)
                raise self.error
        return self._line


def run_counted(function: Callable[[], Any], counter: LineCounter, call: Callable[..., Any] | None = None) -> None:
    """Run the function with the counter on this thread, or on the thread where `call` runs things."""
    on_thread = call or (lambda action, *args: action(*args))
    on_thread(sys.settrace, counter)
    try:
        function()
        on_thread(sys.settrace, None)  # which may be what is interrupted
    except BaseException as error:
        if not isinstance(error, counter.error):
            raise
    finally:
        on_thread(sys.settrace, None)


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())
