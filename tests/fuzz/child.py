"""The process that inputs run in: reads `door number` lines, answers each with a line of JSON."""

import json
import os
import random
import re
import resource
import shutil
import sys
import time
import traceback
import unicodedata
import warnings
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("fuzz", "helpers", "front_door")]

from doors import DOORS, RefusedError  # noqa: E402
from fuzz import MEGABYTES, seconds_of  # noqa: E402

ROOM = 3 * 2**30  # bytes of addresses beyond those that are there before an input


def fault_of(text: str) -> str:
    """What is wrong with a refusal, nothing if it is one clear line."""
    if not text.strip() or len(text) >= 1000:
        return f"a message of {len(text)} characters: {text[:80]!r}"
    if odd := [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]:
        return f"{odd[0]!r} in the message {text[:80]!r}"
    return ""


def tried(base: Path, work: Path, door: str, seed: int, number: int) -> str:
    """What is wrong with how input `number` was taken; nothing if it was used, or refused in one clear line."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        DOORS[door].try_input(base, work, random.Random(f"{seed} {door} {number}"), number)
    except (ValueError, FileNotFoundError, RefusedError) as refusal:
        return fault_of(str(refusal))
    except BaseException as error:
        inner = error.__cause__ if isinstance(error, AssertionError) and error.__cause__ else error
        frames = [
            f for f in traceback.extract_tb(inner.__traceback__) if not re.search("/fuzz/|/hypothesis/", f.filename)
        ]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__}{place}: {' '.join(str(error).split())[:200]}"
    return ""


def memory(field: str) -> int:
    """Bytes of this process, as Linux counts them: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) * 1024


def measured(base: Path, work: Path, door: str, seed: int, number: int) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    resident, addresses, start = memory("VmRSS"), memory("VmSize"), time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ROOM, resource.RLIM_INFINITY))
    fault = tried(base, work, door, seed, number)
    seconds, taken = time.perf_counter() - start, (memory("VmHWM") - resident) / 2**20
    if not fault and seconds > seconds_of(door):
        fault = f"took {seconds:.1f} s"
    if not fault and taken > MEGABYTES:
        fault = f"took {taken:.0f} MB"
    return {"fault": fault, "seconds": seconds, "megabytes": taken}


def main() -> None:
    base, work, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever is printed is no answer
    for line in sys.stdin:
        door, number = line.rstrip("\n").rsplit(" ", 1)
        if number == "prepare":
            DOORS[door].prepare(base)
            print(json.dumps({}), file=answers)
        else:
            print(json.dumps(measured(base, work, door, seed, int(number))), file=answers)


if __name__ == "__main__":
    main()
