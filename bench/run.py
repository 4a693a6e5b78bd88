"""The skeleton of the five commands that measure: a header, what is done already, the loop, a table."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from octavo.bench import options
from octavo.bench.measuring import machine
from octavo.bench.measuring.neighbours import busy_neighbours
from octavo.bench.measuring.roofline import measure_peaks
from octavo.bench.measuring.workloads import at_least
from octavo.bench.reporting import records, tables
from octavo.bench.reporting.schema import Measured, Run
from octavo.gpt.cli.process import message_of
from octavo.gpt.quoting import one_line


@dataclass
class ResultLog:
    """The lines of a run on its way: each is on disk before the next is measured."""

    run: Run
    path: Path
    console: Console
    done: list[Any]

    def keep(self, record: Measured) -> None:
        records.append(self.path, record)
        self.done.append(record)
        if type(record) in tables.HEADLINES:
            self.console.print(tables.line(record))

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether a line of that key is there and passed; failures are measured again."""
        return any(record.passed and record.key == key for record in self.done)

    def progress(self, *columns: Any) -> Progress:
        """A progress bar, shown on a terminal only and removed at its end."""
        return Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)


def run_command(
    command: str, arguments: argparse.Namespace, console: Console, device: torch.device, planned: int,
    work: Callable[[ResultLog], None], dtypes: Sequence[str] = (), packages: Sequence[str] = (),
) -> int:  # fmt: skip
    """Do the work of a command, which is to log `planned` lines, or on --resume those of them that are missing.

    dtypes are those of the matmul rates in the header, packages the distributions whose versions stand there too.
    Whatever ends the work, the table of what is done is shown. Returns the exit code.
    """
    neighbours = getattr(arguments, "neighbours", 0)
    at_least(0, neighbours=neighbours)
    path, before = options.results_file(arguments, command)
    about = machine.describe(device, packages)
    if before is not None:
        options.same_run(before, {**about, "neighbours": neighbours})
        log = ResultLog(before.run, path, console, before.cells)
    else:
        peaks = aside(measure_peaks, device, dtypes)
        header = Run(
            command=command, seed=arguments.seed, planned=planned, neighbours=neighbours, **peaks._asdict(), **about
        )  # fmt: skip
        records.append(path, header)
        log = ResultLog(header, path, console, [])
    machine_line, software, *warnings = tables.header(log.run)
    console.print(machine_line, style="bold")
    console.print(software)
    for warning in warnings:
        console.print(warning, style="yellow")
    try:
        with busy_neighbours(neighbours):
            work(log)
    finally:
        console.print(tables.terminal(log.done, console.width))
        console.print(f"written to {path}", soft_wrap=True)
    return 0


def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a thread of its own: the OpenMP threads it starts end with it and cannot slow a server's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def reason(error: Exception) -> str:
    """The error in one line, as the detail of a record."""
    return one_line(message_of(error), 300)
