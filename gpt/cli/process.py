"""How a command ends, whatever happens to it: an exit code and at most one line on standard error, no traceback.

0: done, or the reader of a pipe went away; 2: bad input, or what the system refused; 130: Ctrl-C; 143: SIGTERM.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

from octavo.gpt.quoting import one_line

PATIENCE = 0.5  # seconds that a command has to tidy up in after a signal
EXPECTED = ValueError, OSError, RuntimeError, ImportError, ArithmeticError, MemoryError
ENDING = signal.SIGINT, signal.SIGTERM
NAMES = "stdin", "stdout", "stderr"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are a ValueError: one line, as for all bad input."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse's own says nothing of a full disk


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def run_process(prog: str, work: Callable[[], int | None], needs_output: bool, patience: float | None) -> int:
    """Run the work as all that this process does, and return the exit code; after a signal, leave the process.

    patience: the most seconds that the work has to tidy up in after a signal; None: all that it wants.
    """
    if "stdout" in _open_closed_streams() and needs_output:
        complain(prog, "standard output is closed")
        return 2
    _end_on_signals(patience)
    code = run(prog, work)
    if code > 128:
        os._exit(code)  # threads that compute are not waited for
    return code


def run(prog: str, work: Callable[[], int | None]) -> int:
    """Run the work, and return the exit code that it gives or that its error means."""
    try:
        return _flushed(work) or 0
    except BrokenPipeError:
        code = 0
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", 128 + signal.SIGINT)
        if code == 128 + signal.SIGINT:
            complain("", "")
    except EXPECTED as error:
        complain(prog, message_of(error))
        code = 2
    _flush_or_drop()
    return code


def complain(prog: str, message: str) -> None:
    """Print one line to standard error, if there is one."""
    with suppress(OSError):
        print(f"{prog}: {one_line(message)}" if prog else message, file=sys.stderr, flush=True)


def message_of(error: BaseException) -> str:
    """What went wrong, in words: a system's error without its number, never an empty text."""
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if _is_path(error.filename) else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    return str(error) or type(error).__name__


def _is_path(name: Any) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _flushed(work: Callable[[], int | None]) -> int | None:
    """Do the work and write out what it printed, so that an error of that has a handler."""
    try:
        code = work()
    except SystemExit:  # argparse printed its help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _flush_or_drop() -> None:
    """Write out what is printed, or give up on it: else the interpreter tries once more, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_closed_streams() -> list[str]:
    """Give each closed standard stream the null device, or a file of ours would get its number and its output."""
    closed = [name for name in NAMES if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for text that a locale cannot say
    return closed


def _end_on_signals(patience: float | None) -> None:
    """Have SIGINT and SIGTERM raise `Interrupted`; a second one, or the end of the patience, ends the process."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, lambda *_: os._exit(128 + number))
        if not _can_be_interrupted(frame):
            os._exit(128 + number)
        raise Interrupted(number)

    with suppress(ValueError):  # in a thread that is not the main one
        if patience is not None:
            _watch(patience)
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, end)


def leave_signals() -> None:
    """Leave the end after a signal to the work, which has handlers of its own and takes as long as it says."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _can_be_interrupted(frame: FrameType | None) -> bool:
    """Whether the work is under way, and not in an import, where libraries swallow interrupts and go on half made."""
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    is_import = any(code.co_filename.startswith("<frozen importlib") for code in codes)
    return _flushed.__code__ in codes and not is_import


def _watch(patience: float) -> None:
    """Have a thread end the process so long after a signal, even if the main thread is deep in a library's code."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while (number := os.read(reader, 1)[0]) not in ENDING:
            pass
        time.sleep(patience)
        os._exit(128 + number)

    Thread(target=wait, name="octavo-signals", daemon=True).start()
