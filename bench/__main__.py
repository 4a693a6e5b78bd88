"""`python -m octavo.bench`: bad input is one line and exit code 2, Ctrl-C keeps what is done and exits with 130."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from octavo.gpt.cli.console import PlainConsole
from octavo.gpt.cli.process import Parser, run, run_process

COMMANDS = {  # each is a module; only the one that is asked for is imported, with PyTorch
    "decode": "tokens/s and latency over batch sizes and contexts, beside peers",
    "ops": "kernel by kernel, on the backends that run here",
    "host": "what a step costs the host, with a model that returns at once",
    "serve": "load on AsyncLLM, or on a server: throughput, latency, goodput",
    "engine": "prefix caching and continuous batching against doing without",
    "perplexity": "how well each format of weights predicts a text, beside llama.cpp",
    "memory": "what each contender takes while it loads and answers, in a process of its own",
    "report": "Markdown tables and pictures of results",
    "compare": "what got slower between two runs; exit code 1 if anything did",
    "tune": "search launch configs on this GPU, print the faster ones as JSON",
}
PROG = "octavo.bench"
WIDTH = 178  # columns, where the output is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code; without argv, as all that this process does."""
    if argv is None:
        return run_process(PROG, lambda: _run(sys.argv[1:]), needs_output=False, patience=None)
    return run(PROG, lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    arguments = parser(argv).parse_args(argv)
    code: int = arguments.run(arguments, PlainConsole(width=None if sys.stdout.isatty() else WIDTH))
    return code


def parser(argv: Sequence[str]) -> Parser:
    """The parser of a command line; of the commands, the one named there knows its arguments."""
    top = Parser(prog=f"python -m {PROG}", description="Measures decoding, kernels and engine beside real peers.")
    top.add_argument("--version", action="version", version=f"octavo {version('octavo')}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == asked:
            module = import_module(f"octavo.bench.{name}")
            command.description, command.epilog = module.__doc__, f"example:  {module.EXAMPLE}"
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return top


if __name__ == "__main__":
    sys.exit(main())
