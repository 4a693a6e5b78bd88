"""Seconds that each kernel of the cpu backend takes to compile, from nothing and from its file on disk.

python -m octavo.kernels.cpu.compiling [--dtype float32] [--weights q8_0]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import run

import torch
from numba.core import config

from octavo.kernels.cpu.compiling.needed import for_every_model, for_some_models
from octavo.kernels.cpu.panels.formats import FORMATS
from octavo.kernels.cpu.vector_ir import instruction_set

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measure(dtype: str, weights: str, folder: str) -> dict[str, float]:
    """Seconds for each kernel, in a process that has compiled none; files of machine code lie in that folder alone."""
    config.CACHE_DIR, seconds = folder, {}
    for name, compile in (*for_every_model(DTYPES[dtype], weights), *for_some_models(DTYPES[dtype], weights)):
        start = time.perf_counter()
        compile()
        seconds[name] = time.perf_counter() - start
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.kernels.cpu.compiling", description=__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of activations")
    parser.add_argument("--weights", choices=sorted({name for name, _ in FORMATS}), help="default: those of dtype")
    parser.add_argument("--cache", type=Path, help="a folder to take code from, which a second run finds full")
    arguments = parser.parse_args(argv)
    weights = arguments.weights or arguments.dtype
    if arguments.cache is None:
        with tempfile.TemporaryDirectory() as folder:
            again = [sys.executable, "-m", "octavo.kernels.cpu.compiling", "--cache", folder]
            again += ["--dtype", arguments.dtype, "--weights", weights]
            return max(run(again, check=False).returncode for _ in range(2))
    had_files = any(arguments.cache.rglob("*.kernel"))
    seconds = measure(arguments.dtype, weights, str(arguments.cache))
    what = "read from disk" if had_files else "compiled"
    print(f"{what} for {instruction_set()}: dtype {arguments.dtype}, weights {weights}")
    for name, each in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{each:8.2f} s  {name}")
    print(f"{sum(seconds.values()):8.2f} s  together")
    return 0


if __name__ == "__main__":
    sys.exit(main())
