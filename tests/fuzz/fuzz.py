"""Hostile input at every door, for so many seconds: `make fuzz`, or a single input again:

    python tests/fuzz/fuzz.py "chat template" 17

An input is a function of FUZZ_SEED, its door and its number. Every input runs in a child with a watchdog, so that a
hang or a crash of the process counts and ends nothing. What fails is kept in build/fuzz.
"""

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).parent / "child.py"
OUT = Path(__file__).parents[2] / "build" / "fuzz"
DOORS = (
    "model folder", "GGUF file", "chat template", "results file", "state machine", "interrupt", "failed allocation",
)  # fmt: skip
MEGABYTES = 400  # an input may take
SECONDS = {"state machine": 60.0, "interrupt": 90.0, "failed allocation": 90.0}  # an input may take; 5 elsewhere
PREPARING = 180.0  # seconds to import all and to make what inputs are made of
SLICE = 2.0  # seconds at one door before the next one's turn
ENOUGH = 6  # deaths and hangs of one door, each of which costs a new child


def seconds_of(door: str) -> float:
    """How long an input of that door may take."""
    return SECONDS.get(door, 5.0)


@dataclass
class Tally:
    """What came of the inputs of one door."""

    tried: int = 0
    crashes: int = 0
    deaths: int = 0  # of the child
    faults: dict[str, str] = field(default_factory=dict)  # the first of each kind, and where its input is kept
    seconds: float = 0
    megabytes: float = 0


class Child:
    """The process that inputs run in, started again whenever it died."""

    def __init__(self, seed: int, out: Path) -> None:
        self.seed, self.out = seed, out
        self.process: subprocess.Popen[str] | None = None
        self.prepared: set[str] = set()

    def ask(self, door: str, number: int) -> dict[str, Any]:
        """How the input was taken: its fault if it has one, seconds and megabytes."""
        if self.process is None:
            self._start()
        if door not in self.prepared:
            if fault := self._answer(f"{door} prepare", PREPARING).get("fault"):
                raise RuntimeError(f"{door} cannot be prepared: {fault}")
            self.prepared.add(door)
        return self._answer(f"{door} {number}", seconds_of(door) + 1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # what was not sent yet
                    pipe.close()  # type: ignore[union-attr]
            self.process = None

    def _start(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-X", "faulthandler", str(CHILD), str(self.out / "base"), str(self.out / "work")]
        with (self.out / "child.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(self.seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.prepared = set()
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self.process, self._answers), daemon=True)
        self._reader.start()

    @staticmethod
    def _read(process: Any, answers: "queue.Queue[str]") -> None:
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def _answer(self, line: str, seconds: float) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        start = time.perf_counter()
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self._answers.get(timeout=seconds)
        except (queue.Empty, BrokenPipeError):
            answer, fault = "", f"no answer within {seconds - 1:.0f} s"
        else:
            fault = "" if answer else f"the process died with code {self.process.wait()}"
        if answer:
            found: dict[str, Any] = json.loads(answer)
            return found
        self.stop()
        return {"fault": fault, "seconds": time.perf_counter() - start, "megabytes": 0.0, "death": True}


def fuzz(seconds: float, seed: int, doors: Sequence[str] = DOORS, out: Path = OUT) -> dict[str, Tally]:
    """Try inputs at each door in turn until the time is over; preparations do not count."""
    child, tallies, left = Child(seed, out), {door: Tally() for door in doors}, seconds
    try:
        while left > 0 and (open_doors := [door for door in doors if tallies[door].deaths < ENOUGH]):
            for door in open_doors:
                spent = 0.0
                while spent < min(SLICE, seconds / len(doors)) and tallies[door].deaths < ENOUGH:
                    answer = child.ask(door, tallies[door].tried)
                    count(tallies[door], answer, door, seed, out)
                    spent += answer["seconds"]
                left -= spent
    finally:
        child.stop()
    return tallies


def count(tally: Tally, answer: dict[str, Any], door: str, seed: int, out: Path) -> None:
    """Add one answer to the tally; the first input of each kind of fault is kept on disk and its place printed."""
    if fault := answer["fault"]:
        tally.crashes += 1
        tally.deaths += "death" in answer
        if (kind := re.sub(r"\d+|'.*|\[.*", "#", fault)) not in tally.faults:
            kept = _keep(fault, door, seed, tally.tried, out)
            tally.faults[kind] = f"{kept}: {fault!r}"[:400]
            print(tally.faults[kind], flush=True)
    tally.tried += 1
    tally.seconds = max(tally.seconds, answer["seconds"])
    tally.megabytes = max(tally.megabytes, answer["megabytes"])


def _keep(fault: str, door: str, seed: int, number: int, out: Path) -> Path:
    kept = out / f"{door.replace(' ', '-')}-{seed}-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    if (out / "work").exists():
        shutil.copytree(out / "work", kept / "input")
    said = (out / "child.log").read_text(errors="replace").splitlines()[-100:]
    again = f'FUZZ_SEED={seed} python tests/fuzz/fuzz.py "{door}" {number}'
    (kept / "fault.txt").write_text("\n".join([fault, again, *said, ""]), errors="replace")
    return kept


def table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'door':<20}{'inputs':>8}{'crashes':>9}{'longest s':>11}{'largest MB':>12}"]
    for door, tally in tallies.items():
        numbers = f"{tally.tried:>8}{tally.crashes:>9}{tally.seconds:>11.2f}{tally.megabytes:>12.0f}"
        lines.append(f"{door:<20}{numbers}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    if arguments:
        door, number = arguments
        child = Child(seed, OUT)
        answer = child.ask(door, int(number))
        child.stop()
        print(json.dumps(answer))
        return 1 if answer["fault"] else 0
    tallies = fuzz(float(os.environ.get("FUZZ_SECONDS", "600")), seed)
    print(table(tallies))
    return 1 if any(tally.crashes for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
