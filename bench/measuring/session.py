"""The grid: contenders x dtypes x batch sizes x contexts. Each cell is checked, then timed, then written down.

On a CPU the contenders of a dtype are open together and repeat in turns: a machine that slows down for a minute slows
all of them, so their ratios hold where their figures do not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from octavo.bench.measuring.check import Verdict, Verifier
from octavo.bench.measuring.memory import PeakMemory
from octavo.bench.measuring.plan import Entry, Plan, label, named
from octavo.bench.measuring.timing import Probe
from octavo.bench.measuring.workloads import CHECK, Budget, Cell, prompts
from octavo.bench.peers.base import Contender, Generation, UnsupportedError
from octavo.bench.reporting import tables
from octavo.bench.reporting.figures import figures, identity
from octavo.bench.reporting.records import Writer
from octavo.bench.reporting.schema import Decode, Run
from octavo.gpt.loading.loader import DTYPES

STEP_WORTH = 25  # prompt tokens that take about as long as one decode step, for the progress bar


@dataclass(frozen=True)
class OpenContender:
    """A contender with its weights loaded."""

    contender: Contender
    dtype: str  # that it was asked for
    load_s: float
    memory: PeakMemory


@dataclass
class Trial:
    """An entrant at one cell: checked, then timed, then written down."""

    entrant: OpenContender
    verdict: Verdict | None = None
    warmup_s: float = 0.0
    repeats: list[Generation] = field(default_factory=list)
    step_probe_s: list[float] = field(default_factory=list)  # before each repeat
    prefill_probe_s: list[float] = field(default_factory=list)
    seconds: float = 0.0  # spent on repeats
    has_failed: bool = False

    def is_over(self, effort: Budget) -> bool:
        if self.has_failed or self.verdict is None or self.verdict.word == "wrong":
            return True
        enough = len(self.repeats) >= effort.min_repeats and self.seconds >= effort.seconds
        return enough or len(self.repeats) >= effort.max_repeats


@dataclass
class Session:
    """A run on its way. A cell's lines are on disk before the next is measured: what is done stays."""

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
        with bar:
            task = bar.add_task("", total=len(self.plan.entries) * sum(map(_worth, self.plan.cells)))
            for name, group in self.plan.groups.items():
                bar.update(task, description=name)
                for cell in self._measure_group(group):
                    bar.advance(task, len(group) * _worth(cell))

    def _measure_group(self, group: list[Entry]) -> Iterator[Cell]:
        """All cells of contenders that are open together; yields each when it is over."""
        with ExitStack() as closing:
            entrants = [entrant for entry in group if (entrant := self._open(entry, closing))]
            for cell in self.plan.cells:
                self._measure(cell, entrants)
                yield cell

    def _open(self, entry: Entry, closing: ExitStack) -> OpenContender | None:
        """The contender with its weights loaded; None where it cannot run, which is then written down."""
        who, dtype = entry
        name, version, memory = label(who), "", PeakMemory(self.plan.device)
        try:
            with memory.at_work():
                start = time.perf_counter()
                contender = self.plan.open(who, dtype)
                closing.callback(contender.close)
                load_s = time.perf_counter() - start
            name, version = contender.name, contender.version
            if contender.dtype != dtype and (name, contender.dtype) in map(named, self.plan.entries):
                raise UnsupportedError(f"it runs in {contender.dtype} here, which has a line of its own")
        except Exception as error:
            for cell in self.plan.cells:
                self._fail(cell, name, version, dtype, error)
            return None
        return OpenContender(contender, dtype, load_s, memory)

    def _measure(self, cell: Cell, entrants: list[OpenContender]) -> None:
        """Check first; what passed is timed, in turns, so that whatever else the machine does meets everyone alike."""
        trials = [Trial(entrant) for entrant in entrants if not self._is_done(entrant.contender, cell)]
        for trial in trials:
            self._try(self._check, trial, cell)
        while waiting := [trial for trial in trials if not trial.is_over(self.plan.effort)]:
            for trial in waiting:
                self._try(self._repeat, trial, cell)
        for trial in trials:
            self._try(self._write, trial, cell)

    def _try(self, do: Callable[[Trial, Cell], None], trial: Trial, cell: Cell) -> None:
        """Go on with a trial; one that fails is over."""
        if trial.has_failed:
            return
        try:
            do(trial, cell)
        except Exception as error:
            trial.has_failed = True
            contender = trial.entrant.contender
            self._fail(cell, contender.name, contender.version, contender.dtype, error)

    def _check(self, trial: Trial, cell: Cell) -> None:
        contender, dtype = trial.entrant.contender, trial.entrant.dtype
        questions = self._prompts(cell, CHECK)
        with trial.entrant.memory.at_work():
            start = time.perf_counter()
            answer = _generate(contender, questions, cell)
            trial.warmup_s = time.perf_counter() - start
        verifier = self._verifier(next(name for name in (contender.dtype, dtype, "float32") if name in DTYPES))
        trial.verdict = verifier.check(questions, answer.tokens, contender.same_weights)

    def _repeat(self, trial: Trial, cell: Cell) -> None:
        trial.step_probe_s.append(self.probe.like_a_step())
        trial.prefill_probe_s.append(self.probe.like_a_prefill())
        start = time.perf_counter()
        answer = _generate(trial.entrant.contender, self._prompts(cell, len(trial.repeats) + 1), cell)
        trial.seconds += time.perf_counter() - start
        trial.repeats.append(answer)

    def _write(self, trial: Trial, cell: Cell) -> None:
        """One line: figures, or that the tokens are wrong."""
        entrant, contender, verdict = trial.entrant, trial.entrant.contender, trial.verdict
        assert verdict is not None
        about = identity(self.plan.source, cell, contender.name, contender.version, contender.dtype)
        about |= {"verdict": verdict.word, "detail": verdict.detail}
        about |= {"load_s": entrant.load_s, "warmup_s": trial.warmup_s}
        if verdict.word != "wrong":
            about |= figures(self.plan.source, cell, contender, trial.repeats, self.run)
            about |= {"step_probe_s": trial.step_probe_s, "prefill_probe_s": trial.prefill_probe_s}
            about |= {"peak_memory_bytes": entrant.memory.peak}
        self._keep(Decode(**about))

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
