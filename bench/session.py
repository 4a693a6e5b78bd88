"""The grid: contenders x dtypes x batch sizes x contexts. Each cell is checked, then timed, then written down."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from octavo.bench import contenders, machine, peers, tables
from octavo.bench.check import Verifier
from octavo.bench.contenders import Contender, Generation, Octavo, Setting, UnsupportedError
from octavo.bench.figures import figures, identity
from octavo.bench.memory import PeakMemory
from octavo.bench.records import Writer
from octavo.bench.roofline import Peaks
from octavo.bench.schema import Decode, Run
from octavo.bench.sources import Source
from octavo.bench.timing import Probe
from octavo.bench.workloads import CHECK, Cell, Effort, prompts
from octavo.gpt.weights import DTYPES, INT8
from octavo.kernels.ops import Ops

STEP_WORTH = 25  # prompt tokens that take about as long as one decode step, for the progress bar


@dataclass(frozen=True)
class Plan:
    """A checked command: nothing in it is unknown or impossible."""

    source: Source
    device: torch.device
    dtypes: tuple[str, ...]
    backends: tuple[Ops, ...]
    peers: tuple[str, ...]
    cells: tuple[Cell, ...]
    effort: Effort
    seed: int

    @property
    def entries(self) -> list[tuple[Ops | str, str]]:
        """Who runs, a backend or a peer's name, and in which dtype; a peer's own format is run once."""
        pairs: list[tuple[Ops | str, str]] = []
        for dtype in self.dtypes:
            names = [peers.in_int8(name) if dtype == INT8 else name for name in self.peers]
            pairs += [(who, dtype) for who in (*self.backends, *names) if who is not None]
        first: dict[Any, str] = {
            who: dtype for who, dtype in reversed(pairs) if isinstance(who, str) and peers.has_own_format(who)
        }
        return [(who, dtype) for who, dtype in dict.fromkeys(pairs) if first.get(who, dtype) == dtype]

    def open(self, who: Ops | str, dtype: str) -> Contender:
        batch = max(cell.batch for cell in self.cells)
        context = max(cell.prompt_tokens + cell.new_tokens for cell in self.cells)
        setting = Setting(self.source, dtype, self.device, torch.get_num_threads(), batch, context)
        return peers.open_peer(who, setting) if isinstance(who, str) else Octavo(setting, who)

    def describe(self, peaks: Peaks) -> Run:
        packages = [peers.PEERS[name.partition(":")[0]].distribution for name in self.peers]
        planned = len(self.entries) * len(self.cells)
        about = machine.describe(self.device, packages)
        return Run(command="decode", seed=self.seed, planned=planned, **peaks._asdict(), **about)


@dataclass
class Session:
    """A run on its way. Every line is on disk before the next is measured, so what is done stays, whatever happens."""

    plan: Plan
    run: Run
    writer: Writer
    console: Console
    done: list[Decode] = field(default_factory=list)
    verifiers: dict[str, Verifier] = field(default_factory=dict)
    probe: Probe = field(init=False)

    def __post_init__(self) -> None:
        self.probe = Probe(self.plan.device)

    def measure_all(self) -> None:
        """Every entry at every cell, but for those that are done already."""
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal, transient=True,
        )  # fmt: skip
        entries = self.plan.entries
        with bar:
            task = bar.add_task("", total=len(entries) * sum(map(_worth, self.plan.cells)))
            for who, dtype in entries:
                bar.update(task, description=f"{label(who)} {dtype}")
                for cell in self._measure_entry(who, dtype):
                    bar.advance(task, _worth(cell))

    def _measure_entry(self, who: Ops | str, dtype: str) -> Iterator[Cell]:
        """All cells of one contender, opened once; yields each when it is over."""
        memory, start = PeakMemory(self.plan.device), time.perf_counter()
        try:
            contender = self.plan.open(who, dtype)
        except Exception as error:
            for cell in self.plan.cells:
                self._fail(cell, label(who), "", dtype, error)
                yield cell
            return
        load_s = time.perf_counter() - start
        twice = contender.dtype != dtype and (contender.name, contender.dtype) in map(_named, self.plan.entries)
        try:
            for cell in self.plan.cells:
                if twice:
                    reason = UnsupportedError(f"it runs in {contender.dtype} here, which has a line of its own")
                    self._fail(cell, contender.name, contender.version, dtype, reason)
                elif not self._is_done(contender, cell):
                    self._try(contender, cell, dtype, load_s, memory)
                yield cell
        finally:
            contender.close()

    def _try(self, contender: Contender, cell: Cell, dtype: str, load_s: float, memory: PeakMemory) -> None:
        """One line, whatever comes of it."""
        try:
            self._keep(self._measure(contender, cell, dtype, load_s, memory))
        except Exception as error:
            self._fail(cell, contender.name, contender.version, contender.dtype, error)

    def _measure(self, contender: Contender, cell: Cell, dtype: str, load_s: float, memory: PeakMemory) -> Decode:
        """Check first; only what passed is timed."""
        questions, start = self._prompts(cell, CHECK), time.perf_counter()
        answer = _generate(contender, questions, cell)
        warmup_s = time.perf_counter() - start
        with memory.aside():
            verifier = self._verifier(next(name for name in (contender.dtype, dtype, "float32") if name in DTYPES))
            verdict = verifier.check(questions, answer.tokens, contender.same_weights)
        about = identity(self.plan.source, cell, contender.name, contender.version, contender.dtype)
        about |= {"verdict": verdict.word, "detail": verdict.detail, "load_s": load_s, "warmup_s": warmup_s}
        if verdict.word == "wrong":
            return Decode(**about)
        repeats, probes = self._repeat(contender, cell)
        found = figures(self.plan.source, cell, contender, repeats, self.run)
        return Decode(**about, **found, probe_s=probes, peak_memory_bytes=memory.bytes())

    def _repeat(self, contender: Contender, cell: Cell) -> tuple[list[Generation], list[float]]:
        effort, start = self.plan.effort, time.perf_counter()
        repeats: list[Generation] = []
        probes: list[float] = []
        while len(repeats) < effort.min_repeats or (
            len(repeats) < effort.max_repeats and time.perf_counter() - start < effort.seconds
        ):
            probes.append(round(self.probe(), 6))
            repeats.append(_generate(contender, self._prompts(cell, len(repeats) + 1), cell))
        return repeats, probes

    def _prompts(self, cell: Cell, repeat: int) -> list[list[int]]:
        return prompts(self.plan.source.config, cell, self.plan.seed, repeat)

    def _is_done(self, contender: Contender, cell: Cell) -> bool:
        wanted = identity(self.plan.source, cell, contender.name, "", contender.dtype)
        key = Decode(**wanted, verdict="", detail="").key
        return any(record.passed and record.key == key for record in self.done)

    def _fail(self, cell: Cell, name: str, version: str, dtype: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        about = identity(self.plan.source, cell, name, version, dtype)
        word = "unsupported" if isinstance(error, UnsupportedError) else "failed"
        self._keep(Decode(**about, verdict=word, detail=reason[:300]))

    def _keep(self, record: Decode) -> None:
        self.writer.write(record)
        self.done.append(record)
        self.console.print(tables.speed_line(record))

    def _verifier(self, dtype: str) -> Verifier:
        if dtype not in self.verifiers:
            self.verifiers[dtype] = Verifier(self.plan.source, dtype, self.plan.device, self.plan.seed)
        return self.verifiers[dtype]


def _named(entry: tuple[Ops | str, str]) -> tuple[str, str]:
    return label(entry[0]), entry[1]


def label(who: Ops | str) -> str:
    return who if isinstance(who, str) else contenders.OWN + who.name


def _generate(contender: Contender, questions: list[list[int]], cell: Cell) -> Generation:
    """The contender's answer; ValueError unless every prompt got its tokens and at least one step was timed."""
    answer = contender.generate(questions, cell.new_tokens)
    lengths = [len(tokens) for tokens in answer.tokens]
    if lengths != [cell.new_tokens] * cell.batch:
        raise ValueError(f"gave {sorted(set(lengths))} tokens to {len(lengths)} prompts, not {cell.new_tokens} each")
    if not answer.step_s:
        raise ValueError("no step gave every sequence a token")
    return answer


def _worth(cell: Cell) -> int:
    return cell.batch * cell.prompt_tokens + STEP_WORTH * cell.new_tokens
