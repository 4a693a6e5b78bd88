"""Neighbours: other programs that compute meanwhile, as on a machine that is shared."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy_neighbours(number: int) -> Iterator[None]:
    """Run so many programs beside the block, each of which keeps a core busy and nothing else."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
