"""A run of `decode`: contenders x dtypes x batch sizes x contexts, each checked, then timed, then written down.

On a CPU the contenders of a dtype are open together and repeat in turns: a machine that slows down for a minute slows
all of them, so their ratios hold where their figures do not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from octavo.bench.measuring.check import Verdict, Verifier
from octavo.bench.measuring.machine import PeakMemory
from octavo.bench.measuring.roofline import prefill_flops, step_bytes, step_flops
from octavo.bench.measuring.timing import Probe
from octavo.bench.measuring.workloads import CHECK, Effort, GridPoint, prompts
from octavo.bench.peers import base, registry
from octavo.bench.peers.base import Contender, Generation, Octavo, RunSettings, UnsupportedError
from octavo.bench.peers.sources import ModelSource
from octavo.bench.reporting.schema import Decode
from octavo.bench.run import ResultLog, reason
from octavo.gpt.loading.loader import DTYPES
from octavo.kernels.ops import Ops

STEP_WORTH = 25  # prompt tokens that take about as long as one decode step, for the progress bar


class Entry(NamedTuple):
    """One contender of the grid, not open yet."""

    who: Ops | str  # a backend, or a peer's name
    dtype: str

    @property
    def name(self) -> str:
        return self.who if isinstance(self.who, str) else base.OWN + self.who.name


@dataclass(frozen=True)
class DecodePlan:
    """A checked command: nothing in it is unknown or impossible."""

    source: ModelSource
    device: torch.device
    dtypes: tuple[str, ...]
    backends: tuple[Ops, ...]
    peers: tuple[str, ...]
    points: tuple[GridPoint, ...]
    effort: Effort
    seed: int

    @property
    def entries(self) -> list[Entry]:
        """The contenders in each dtype; a peer in a format of its own runs once, whatever the dtypes of the run."""
        found: dict[Any, Entry] = {}
        for dtype in self.dtypes:
            peers = [registry.in_precision(name, dtype) for name in self.peers]
            contenders: list[Ops | str] = [*self.backends, *(name for name in peers if name)]
            for who in contenders:
                once = isinstance(who, str) and registry.has_own_format(who)
                found.setdefault(who if once else (who, dtype), Entry(who, dtype))
        return list(found.values())

    @property
    def idle_peers(self) -> list[str]:
        """The peers that have no entry: none of the run's weights is for them."""
        used = {entry.name.partition(":")[0] for entry in self.entries}
        return [name for name in self.peers if name.partition(":")[0] not in used]

    @property
    def groups(self) -> dict[str, list[Entry]]:
        """The entries that are open together and take turns.

        On a CPU these are the entries of one dtype, except peers that disturb others; on a GPU, whose memory is for
        one, each is alone.
        """
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            alone = self.device.type != "cpu" or (isinstance(entry.who, str) and registry.disturbs(entry.who))
            found.setdefault(f"{entry.name} {entry.dtype}" if alone else entry.dtype, []).append(entry)
        return found

    @property
    def packages(self) -> list[str]:
        """The distributions of the peers."""
        return [registry.PEERS[name.partition(":")[0]].distribution for name in self.peers]

    def settings(self, entry: Entry) -> RunSettings:
        """With room for every point of the grid."""
        batch = max(point.batch for point in self.points)
        context = max(point.prompt_tokens + point.new_tokens for point in self.points)
        return RunSettings(self.source, entry.dtype, self.device, torch.get_num_threads(), batch, context)

    def prepare(self, entry: Entry) -> None:
        """Make the files that the contender reads."""
        if isinstance(entry.who, str):
            registry.prepare(entry.who, self.settings(entry))
        else:
            base.file_read(self.settings(entry))

    def open(self, entry: Entry) -> Contender:
        """The contender with its weights loaded."""
        settings = self.settings(entry)
        return registry.open_peer(entry.who, settings) if isinstance(entry.who, str) else Octavo(settings, entry.who)


@dataclass(frozen=True)
class OpenContender:
    """A contender with its weights loaded."""

    contender: Contender
    dtype: str  # that it was asked for
    load_s: float
    memory: PeakMemory


@dataclass
class Measurement:
    """An open contender at one point of the grid: checked, then timed, then written down."""

    opened: OpenContender
    point: GridPoint
    record: Decode  # what is measured, without figures
    verdict: Verdict | None = None
    warmup_s: float = 0.0
    repeats: list[Generation] = field(default_factory=list)
    step_probe_s: list[float] = field(default_factory=list)  # before each repeat
    prefill_probe_s: list[float] = field(default_factory=list)
    seconds: float = 0.0  # spent on repeats
    has_failed: bool = False

    def is_over(self, effort: Effort) -> bool:
        if self.has_failed or self.verdict is None or self.verdict.status == "wrong":
            return True
        enough = len(self.repeats) >= effort.min_repeats and self.seconds >= effort.seconds
        return enough or len(self.repeats) >= effort.max_repeats


class DecodeRun:
    """Measures a plan into a log."""

    def __init__(self, plan: DecodePlan, log: ResultLog) -> None:
        self.plan, self.log, self.probe = plan, log, Probe(plan.device)
        self._verifier = cache(lambda dtype: Verifier(plan.source, dtype, plan.device, plan.seed))

    def measure_all(self) -> None:
        """Every entry at every point, except those that are done already."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left")
        with self.log.progress(*columns, TimeRemainingColumn()) as bar:
            task = bar.add_task("", total=len(self.plan.entries) * sum(map(_worth, self.plan.points)))
            for name, group in self.plan.groups.items():
                bar.update(task, description=name)
                for point in self._measure_group(group):
                    bar.advance(task, len(group) * _worth(point))

    def _measure_group(self, group: list[Entry]) -> Iterator[GridPoint]:
        """All points of contenders that are open together; yields each when it is over."""
        with ExitStack() as closing:
            opened = [one for entry in group if (one := self._open(entry, closing))]
            for point in self.plan.points:
                self._measure(point, opened)
                yield point

    def _open(self, entry: Entry, closing: ExitStack) -> OpenContender | None:
        """The contender with its weights loaded; None where it cannot run, which is then written down."""
        name, version, memory = entry.name, "", PeakMemory(self.plan.device)
        try:
            self.plan.prepare(entry)
            with memory.at_work():
                start = time.perf_counter()
                contender = self.plan.open(entry)
                closing.callback(contender.close)
                load_s = time.perf_counter() - start
            name, version, own = contender.name, contender.version, contender.dtype
            if own != entry.dtype and (name, own) in [(other.name, other.dtype) for other in self.plan.entries]:
                raise UnsupportedError(f"it runs in {own} here, which has a line of its own")
        except Exception as error:
            for point in self.plan.points:
                self._fail(self._about(point, name, version, entry.dtype), error)
            return None
        return OpenContender(contender, entry.dtype, load_s, memory)

    def _measure(self, point: GridPoint, opened: list[OpenContender]) -> None:
        """Check first; what passed is timed, in turns, so that whatever else the machine does meets everyone alike."""
        whos = [(one.contender.name, one.contender.version, one.contender.dtype) for one in opened]
        every = [Measurement(one, point, self._about(point, *who)) for one, who in zip(opened, whos, strict=True)]
        todo = [measurement for measurement in every if not self.log.has(measurement.record.key)]
        for measurement in todo:
            self._try(self._check, measurement)
        while waiting := [one for one in todo if not one.is_over(self.plan.effort)]:
            for measurement in waiting:
                self._try(self._repeat, measurement)
        for measurement in todo:
            self._try(self._write, measurement)

    def _try(self, do: Callable[[Measurement], None], measurement: Measurement) -> None:
        """Go on with a measurement; one that fails is over."""
        if measurement.has_failed:
            return
        try:
            do(measurement)
        except Exception as error:
            measurement.has_failed = True
            self._fail(measurement.record, error)

    def _check(self, measurement: Measurement) -> None:
        contender, dtype = measurement.opened.contender, measurement.opened.dtype
        questions = self._prompts(measurement.point, CHECK)
        with measurement.opened.memory.at_work():
            start = time.perf_counter()
            answer = _generate(contender, questions, measurement.point)
            measurement.warmup_s = time.perf_counter() - start
        verifier = self._verifier(next(name for name in (contender.dtype, dtype, "float32") if name in DTYPES))
        measurement.verdict = verifier.check(questions, answer.tokens, contender.same_weights)

    def _repeat(self, measurement: Measurement) -> None:
        measurement.step_probe_s.append(self.probe.decode_probe())
        measurement.prefill_probe_s.append(self.probe.prefill_probe())
        questions = self._prompts(measurement.point, len(measurement.repeats) + 1)
        start = time.perf_counter()
        answer = _generate(measurement.opened.contender, questions, measurement.point)
        measurement.seconds += time.perf_counter() - start
        measurement.repeats.append(answer)

    def _write(self, measurement: Measurement) -> None:
        """One line: figures, or that the tokens are wrong."""
        opened, verdict = measurement.opened, measurement.verdict
        assert verdict is not None
        record = replace(
            measurement.record, verdict=verdict.status, detail=verdict.detail, load_s=opened.load_s,
            warmup_s=measurement.warmup_s,
        )  # fmt: skip
        if verdict.status != "wrong":
            record = replace(
                record,
                ttft_s=[round(answer.ttft_s, 7) for answer in measurement.repeats],
                step_s=[[round(step, 7) for step in answer.step_s] for answer in measurement.repeats],
                steps_are_means=any(answer.steps_are_means for answer in measurement.repeats),
                step_probe_s=measurement.step_probe_s,
                prefill_probe_s=measurement.prefill_probe_s,
                peak_memory_bytes=opened.memory.peak,
            )
            record = replace(record, **self._shares(record, opened.contender))
        self.log.keep(record)

    def _shares(self, record: Decode, contender: Contender) -> dict[str, Any]:
        """How much of what the machine can do a step and a prefill were."""
        config, run = self.plan.source.config, self.log.run
        seen = record.prompt_tokens + record.new_tokens // 2  # by the middle step
        moved = step_bytes(config, contender.weight_bytes, contender.value_bytes, record.batch, seen)
        step = step_flops(config, record.batch, seen) / record.tpot_median_s
        prefill = prefill_flops(config, record.batch, record.prompt_tokens) / record.ttft_median_s
        rate = run.matmul_flops_per_s.get(contender.dtype)
        return {
            "step_bytes": moved,
            "bandwidth_share": moved / record.tpot_median_s / run.bandwidth,
            "compute_share": rate and step / rate,
            "prefill_compute_share": rate and prefill / rate,
        }

    def _about(self, point: GridPoint, name: str, version: str, dtype: str) -> Decode:
        """A line that says what is measured, and no more yet."""
        source = self.plan.source
        return Decode(
            source.name, source.dummy, name, version, dtype, point.batch, point.context, point.prompt_tokens,
            point.new_tokens, verdict="", detail="",
        )  # fmt: skip

    def _prompts(self, point: GridPoint, repeat: int) -> list[list[int]]:
        return prompts(self.plan.source.config, point, self.plan.seed, repeat)

    def _fail(self, record: Decode, error: Exception) -> None:
        status = "unsupported" if isinstance(error, UnsupportedError) else "failed"
        self.log.keep(replace(record, verdict=status, detail=reason(error)))


def _generate(contender: Contender, questions: list[list[int]], point: GridPoint) -> Generation:
    """The contender's answer; ValueError unless every prompt got its tokens and at least one step was timed."""
    answer = contender.generate(questions, point.new_tokens)
    lengths = [len(tokens) for tokens in answer.tokens]
    if lengths != [point.new_tokens] * point.batch:
        raise ValueError(f"gave {sorted(set(lengths))} tokens to {len(lengths)} prompts, not {point.new_tokens} each")
    if not answer.step_s:
        raise ValueError("no step gave every sequence a token")
    return answer


def _worth(point: GridPoint) -> int:
    return point.batch * point.prompt_tokens + STEP_WORTH * point.new_tokens
