"""Tables of the command line about single tokens: draws, log-probabilities, beams."""

import math
from typing import TYPE_CHECKING

from rich.table import Table

from octavo.gpt.cli.console import PlainConsole
from octavo.gpt.cli.output import visible

if TYPE_CHECKING:  # PyTorch is imported by what loads a model, and by nothing else
    from octavo.gpt.beam_search import Beam
    from octavo.gpt.outputs import RequestOutput
    from octavo.gpt.scoring import Draw

WON = "<- drawn"


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in ("token", "text", "") else "right")
    return table


def draw(found: "Draw", texts: list[str], won: int) -> None:
    """Print the candidates of a draw; texts are those of the drawn token and of each candidate."""
    table = _table("token", "id", "model", "after temperature", "after filters", "")
    for text, each in zip(texts[1:], found.candidates, strict=True):
        kept = f"{each.kept:.4f}" if each.kept else "-"
        mark = WON if each.token_id == won else ""
        table.add_row(visible(text), str(each.token_id), f"{each.raw:.4f}", f"{each.tempered:.4f}", kept, mark)
    if won not in [each.token_id for each in found.candidates]:
        table.add_row(visible(texts[0]), str(won), "", "", "", WON)
    console = PlainConsole()
    console.print(table)
    console.print(f"the filters kept {found.num_kept:,} tokens", style="dim")


def logprobs(request: "RequestOutput") -> None:
    """Print each token of each completion with its probability and the likeliest others; to standard error."""
    for output in request.outputs:
        table = _table("token", "probability", "rank", "")
        for token_id, entries in zip(output.token_ids, output.logprobs or [], strict=False):
            own = entries[token_id]
            others = [
                f"{visible(e.decoded_token or '')} {math.exp(e.logprob):.3f}" for e in entries.values() if e != own
            ]
            shown = f"{math.exp(own.logprob):.4f}"
            table.add_row(visible(own.decoded_token or str(token_id)), shown, str(own.rank), "  ".join(others))
        PlainConsole(stderr=True).print(table)


def beams(found: "list[Beam]") -> None:
    """Print the beams, best first."""
    table = _table("score", "log-probability", "text")
    for each in found:
        text = visible(each.text) if each.text is not None else " ".join(map(str, each.token_ids))
        table.add_row(f"{each.score:.4f}", f"{each.cumulative_logprob:.4f}", text)
    PlainConsole().print(table)
