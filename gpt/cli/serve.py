"""The command `octavo serve`: its flags, which are the fields of `Settings` and those of a model."""

import argparse
import os
from collections.abc import Callable
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from octavo.gpt.cli.process import leave_signals
from octavo.gpt.quoting import quoted
from octavo.gpt.server.settings import Settings

if TYPE_CHECKING:
    from octavo.gpt.async_llm import AsyncLLM

KEY = "OCTAVO_API_KEY"
ENGINE = {  # flags of the engine: default, help
    "max_num_seqs": (64, "most completions that are decoded together"),
    "max_num_waiting": (4096, "most requests that wait; more are answered 503"),
    "num_blocks": (None, "blocks of the cache (as many as memory allows)"),
    "block_size": (16, "tokens of a block"),
}


def serve(arguments: argparse.Namespace) -> None:
    """Serve the model over HTTP, by OpenAI's API."""
    run_server(arguments)


def run_server(arguments: argparse.Namespace, listening: Callable[[str], None] | None = None) -> None:
    """Serve as the flags say until a signal asks to stop; `listening` hears of the address."""
    settings = settings_of(arguments)
    try:
        from octavo.gpt.server.run import serve as run
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'octavo[serve]'") from None
    leave_signals()
    run(lambda: _async_llm(arguments), arguments.model, settings, listening)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return what the flags say; ValueError for a number that cannot be meant."""
    given = {each.name: getattr(arguments, each.name) for each in fields(Settings)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if not given["api_key"] and os.environ.get(KEY):
        given["api_key"] = (os.environ[KEY],)
    for name, value in given.items():
        least = 0 if name in ("port", "shutdown_timeout", "max_logprobs", "max_stop") else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
            raise ValueError(f"{name} must be at least {least}, not {quoted(value)}")
    return Settings(**given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the server and of the engine; those of the model are added by the caller."""
    group = parser.add_argument_group("server")
    hints = get_type_hints(Settings)
    for each in fields(Settings):
        group.add_argument(f"--{each.name.replace('_', '-')}", **_flag(hints[each.name], each))
    group = parser.add_argument_group("engine")
    for name, (default, text) in ENGINE.items():
        shown = text if default is None else f"{text} ({default})"
        group.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, metavar="N", help=shown)
    group.add_argument("--parse-special", action="store_true", help="read control tokens in prompts as such")
    group.add_argument(
        "--generation-config", default="auto", metavar="NAME", help="whose sampling defaults: auto, octavo or a folder"
    )
    group.add_argument(
        "--lora", action="append", default=[], metavar="NAME=FOLDER", help="an adapter that requests may name"
    )


def _flag(hint: Any, each: Field) -> dict[str, Any]:
    """Return how argparse reads a setting."""
    text = each.metadata["help"]
    if hint is bool:
        return {"action": "store_true", "help": text}
    if isinstance(each.default, tuple):
        return {"action": "append", "default": [], "metavar": "TEXT", "help": text}
    kind = next(kind for kind in (int, float, str) if kind is hint or hint == kind | None)
    shown = text if each.default is None else f"{text} ({each.default})"
    return {"type": kind, "default": each.default, "metavar": {int: "N", float: "X", str: "NAME"}[kind], "help": shown}


def _async_llm(arguments: argparse.Namespace) -> "AsyncLLM":
    from octavo.gpt.async_llm import AsyncLLM

    names = ("backend", "dtype", "weights", "device", "max_model_len", "adapter", "parse_special", "generation_config")
    adapters = dict(map(_adapter, arguments.lora))
    seed = int.from_bytes(os.urandom(7), "little")
    given = {name: getattr(arguments, name) for name in (*names, *ENGINE)}
    return AsyncLLM(arguments.model, adapters=adapters, seed=seed, **given)


def _adapter(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ValueError(f"lora must be NAME=FOLDER, not {quoted(text)}")
    return name, folder
