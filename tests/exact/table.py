"""The table of conditions x formats in the README: how many of 64 requests have, to the bit, what they have alone.

    python tests/exact/table.py [FORMAT | CONDITION] ...

Measures SmolLM2 on the cpu backend and writes the cells of these formats and conditions, all where none is named. Exit
code 1 if any request differs anywhere.
"""

import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from octavo.gpt import LLM, DraftModel

from conditions import CONDITIONS, DRAFT, Request, alone, make_requests

README = Path(__file__).parents[2] / "README.md"
PROSE = Path(__file__).parents[2] / "bench" / "measuring" / "prose.txt"
BEGIN, END = "<!-- exact -->\n", "<!-- /exact -->"
NUMBER = 64
MOST_TOKENS = 8
FORMATS = {  # a column -> options of LLM
    "float32": {"dtype": "float32", "weights": "dense"},
    "bfloat16": {"dtype": "bfloat16", "weights": "dense"},
    "q8_0": {"dtype": "float32", "weights": "q8_0"},
    "q4_0": {"dtype": "float32", "weights": "q4_0"},
    "file": {"dtype": "float32", "weights": "file"},
}
Cells = dict[str, dict[str, str]]  # condition -> format -> what its cell says


def load(**options: Any) -> LLM:
    if options.get("speculative") == DRAFT:
        options["speculative"] = DraftModel("smollm2", num_tokens=3)  # of the file's blocks, whatever the format
    return LLM("smollm2", backend="cpu", **{"max_model_len": 512, **options})


def requests() -> list[Request]:
    """Mostly short ones, and some that cross the pieces of 256 keys into which attention is cut."""
    rng = random.Random(1)
    lengths = [1, 2, 300, 255, 256, *(rng.randint(3, 60) for _ in range(NUMBER - 5))]
    with load(weights="file") as llm:
        return make_requests(llm.encode(PROSE.read_text()), lengths, MOST_TOKENS)


def measure(name: str, conditions: list[str], asked: list[Request]) -> dict[str, str]:
    """What the cells of a format say, by condition; each is told as it comes out."""
    load_so, cells = partial(load, **FORMATS[name]), {}
    start = time.perf_counter()
    wanted = alone(load_so, asked)
    print(f"{name}: alone, {time.perf_counter() - start:.0f} s", flush=True)
    for condition in conditions:
        start = time.perf_counter()
        found = CONDITIONS[condition](load_so, asked, wanted)
        cells[condition] = f"{sum(found)} of {len(found)}"
        different = [index for index, is_same in enumerate(found) if not is_same]
        print(
            f"{name}: {condition}: {cells[condition]} {different or ''}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return cells


def read(text: str) -> Cells:
    """The cells of the README's table, none where it is empty."""
    lines = text.split(BEGIN)[1].split(END)[0].splitlines()
    if not lines:
        return {}
    (_, *names), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line)
    return {condition: dict(zip(names, row, strict=True)) for condition, *row in rows}


def written(text: str, cells: Cells) -> str:
    """The README with these cells in its table."""
    rows = [["condition", *FORMATS], ["---"] * (len(FORMATS) + 1)]
    rows += [[condition, *(cells.get(condition, {}).get(name, "-") for name in FORMATS)] for condition in CONDITIONS]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


def main(names: list[str]) -> int:
    if unknown := {*names} - {*FORMATS, *CONDITIONS}:
        sys.exit(f"table.py: no format and no condition: {', '.join(sorted(unknown))}")
    conditions = [name for name in CONDITIONS if name in names] or [*CONDITIONS]
    asked, is_same = requests(), True
    for name in [name for name in FORMATS if name in names] or FORMATS:
        found = measure(name, conditions, asked)
        text = README.read_text()
        cells = read(text)
        for condition, cell in found.items():
            cells.setdefault(condition, {})[name] = cell
            is_same &= cell == f"{NUMBER} of {NUMBER}"
        README.write_text(written(text, cells))
    return int(not is_same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
