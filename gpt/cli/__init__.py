"""The command line: what it shares with other commands is in `process`."""

from octavo.gpt.cli.commands import main

__all__ = ["main"]
