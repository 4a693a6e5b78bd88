"""The command `octavo play`: the server on a free port, and its page in a browser."""

import argparse
import os
import sys
import threading
import webbrowser

from octavo.gpt.cli import serve
from octavo.gpt.cli.process import complain


def play(arguments: argparse.Namespace) -> None:
    """Serve the model on a free port, and open its page: tokens, bars, beams, a chat."""
    serve.run_server(arguments, lambda url: show(url, arguments.no_browser))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `octavo serve`, and what becomes of the browser."""
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open nothing")
    serve.add_arguments(parser)
    parser.set_defaults(port=0, quiet=True)


def show(url: str, only_says: bool) -> None:
    """Print where the page is, and open it where there is a screen: else a browser of text would take the terminal."""
    complain("octavo", f"the page is at {url}/")
    has_screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if has_screen and not only_says:
        threading.Thread(target=webbrowser.open, args=[f"{url}/"], daemon=True).start()
