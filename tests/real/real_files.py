"""Files of other projects, which `make real` fetches into the folder that OCTAVO_REAL names, and texts to try."""

import os
import random
from pathlib import Path

import pytest

FOLDER = Path(os.environ["OCTAVO_REAL"]) if "OCTAVO_REAL" in os.environ else None
NUMBER = int(os.environ.get("OCTAVO_REAL_TEXTS", "10000"))
PARTS_OF_CASES = "\n__ggml_vocab_test__\n"

POOLS = (
    "abcdefghij ABC 0123456789 .,!?'\"-_()[]{}\n\t ",
    "éüßñç don't I'LL we've",
    "漢字仮名中國한국",
    "   \r\n\n\t  123456789",
    "\U0001f600\U0001f468\u200d\U0001f469\U0001f1eb\U0001f1f7",
    "\u0301\u0300\u0327\u200d\u00a0\u3000\u2028\ufb01\u2460",
    "\u0627\u0628\u062a\u0939\u093f\u0928\u094d",
)


def real(part: str) -> Path:
    """A folder of what was fetched; the test is skipped where it is missing."""
    folder = (FOLDER or Path()) / part
    if FOLDER is None or not folder.is_dir():
        pytest.skip(f"{folder} was not fetched")
    return folder


def hard_texts() -> list[str]:
    """llama.cpp's own texts, and random ones."""
    fixed = (real("vocab") / "ggml-vocab-llama-bpe.gguf.inp").read_text("utf-8").split(PARTS_OF_CASES)
    draw = random.Random(0)
    made = ("".join(draw.choice(draw.choice(POOLS)) for _ in range(draw.randrange(1, 40))) for _ in range(NUMBER))
    runs = [" " * number + "x" for number in range(1, 40)]
    return [*fixed, *runs, *made]
