"""`python -m octavo.bench`: bad input is one line and exit code 2, Ctrl-C keeps what is done and exits with 130."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from octavo.bench import compare, decode, engine, host, ops, report, serve, tune

COMMANDS = {
    "decode": decode, "ops": ops, "host": host, "serve": serve, "engine": engine, "report": report, "compare": compare,
    "tune": tune,
}  # fmt: skip
WIDTH = 140  # columns, where the output is no terminal


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"octavo.bench: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        code: int = arguments.run(arguments, console)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the pipe is gone
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"octavo.bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def parser() -> Parser:
    top = Parser(prog="python -m octavo.bench", description="Measures decoding, kernels and engine beside real peers.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.run.__doc__, description=module.__doc__, epilog=f"example:  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
