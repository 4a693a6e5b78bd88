"""Tells what got slower between two runs, beyond the noise of both. Exit code 1 if anything did.

The noise of a run is half the 95 % confidence interval of its median, over repeats or over five chunks of one sample;
few samples count with their whole range. A change counts if it is larger than the noise of both runs and than
`MIN_CHANGE`. Where the probes, fixed work beside the repeats, took longer or shorter than before, the machine changed,
and twice their change is excused. All figures of a contender are judged once more together, by geometric means: noise
that hides a change in each of them partly cancels. A contender that was right and now is wrong or fails is slower.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, hypot
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from octavo.bench.measuring.timing import median
from octavo.bench.peers.base import OWN
from octavo.bench.peers.kernels import PEER_OPS
from octavo.bench.reporting import records, tables
from octavo.bench.reporting.records import Results
from octavo.bench.reporting.schema import Decode, Measured, Op, Scenario, Serve

EXAMPLE = "python -m octavo.bench compare build/bench/before build/bench/after"
MIN_CHANGE = 0.08  # a smaller change is never reported
DRIFT_COUNTS = 2  # a change up to this many times that of the probes is the machine's
CHUNKS = 5
UNLIKELY = 0.05  # the chance that the true median lies outside the interval
STYLES = {"slower": "bold red", "broken": "bold red", "faster": "green", "same": "", "too noisy": "yellow"}


class Quantity(NamedTuple):
    """One figure of a record, in seconds: a sample for each repeat or chunk."""

    what: str
    samples: Sequence[float]
    probes: Sequence[float] = ()  # seconds of the fixed work beside them
    group: str = ""  # the contender, where its quantities are also judged together


@dataclass(frozen=True)
class Change:
    """One quantity in both runs, in seconds."""

    what: str
    old_s: float
    new_s: float
    spreads: tuple[float, ...]  # the noise of the runs, as shares
    drift: float  # by what share the machine became slower
    own: bool  # Octavo's; the change of a peer is the machine's
    group: str = ""
    is_group: bool = False

    @property
    def noise(self) -> float:
        """The sum of both runs' noise; for a mean of many quantities, that of a mean of independent errors."""
        if not self.is_group:
            return sum(self.spreads)
        return hypot(*self.spreads) / (len(self.spreads) / 2)

    @property
    def share(self) -> float:
        return self.new_s / self.old_s - 1

    @property
    def status(self) -> str:
        """A machine that became slower excuses what became slower, and the other way round."""
        if self.share > max(MIN_CHANGE, self.noise + DRIFT_COUNTS * self.drift):
            return "slower"
        if 1 / (1 + self.share) - 1 > max(MIN_CHANGE, self.noise - DRIFT_COUNTS * self.drift):
            return "faster"
        return "too noisy" if self.noise + DRIFT_COUNTS * abs(self.drift) > 2 * MIN_CHANGE else "same"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, metavar="OLD", help="a folder or .jsonl file of results")
    parser.add_argument("new", type=Path, metavar="NEW", help="another of the same command")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """what got slower between two runs; exit code 1 if anything did"""
    old, new = records.read(arguments.old), records.read(arguments.new)
    check_comparable(old, new)
    changes, broken = list(compare(old.cells, new.cells)), list(broken_cells(old.cells, new.cells))
    changes += together(changes)
    if not changes and not broken:
        raise ValueError(f"{old.path} and {new.path} have nothing in common")
    for name, results in (("old", old), ("new", new)):
        commit = tables.commit(results.run).removeprefix("commit ")
        console.print(f"{name} {results.path}: {commit}, {results.run.date}", highlight=False)
    if warning := _machine(old, new, changes):
        console.print(warning, style="yellow")
    console.print(_table(changes))
    for what in broken:
        console.print(f"broken: {what}", style=STYLES["broken"])
    ours = [change for change in changes if change.own]
    slower, noisy = (sum(change.status == status for change in ours) for status in ("slower", "too noisy"))
    console.print(f"{slower} of {len(ours)} of ours slower, {len(broken)} broken, {noisy} too noisy to tell")
    return 1 if slower or broken else 0


def check_comparable(old: Results, new: Results) -> None:
    """ValueError unless both runs are of one command on one kind of machine."""
    for name in ("command", "device", "device_name", "threads"):
        then, now = getattr(old.run, name), getattr(new.run, name)
        if then != now:
            then, now = records.plain(then), records.plain(now)
            raise ValueError(f"{old.path} has {name} {then}, {new.path} has {now}: these cannot be compared")


def compare(old: Sequence[Any], new: Sequence[Any]) -> Iterator[Change]:
    """A change for each quantity that both runs have."""
    now = {record.key: record for record in new if record.passed}
    for key, record in {record.key: record for record in old if record.passed}.items():
        if key in now:
            for before, after in zip(_quantities(record), _quantities(now[key]), strict=True):
                if before.samples and after.samples:
                    times = median(before.samples), median(after.samples)
                    spreads = _noise(before.samples), _noise(after.samples)
                    drift = _drift(before, after)
                    yield Change(before.what, *times, spreads, drift, _is_own(record), before.group)


def together(changes: Sequence[Change]) -> list[Change]:
    """One change for each contender with several quantities: their geometric means."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        if change.group:
            groups.setdefault(change.group, []).append(change)
    return [_mean(group, members) for group, members in groups.items() if len(members) > 1]


def _mean(group: str, changes: Sequence[Change]) -> Change:
    old_s, new_s = (geometric_mean(getattr(change, name) for change in changes) for name in ("old_s", "new_s"))
    spreads = tuple(spread for change in changes for spread in change.spreads)
    drift = median([change.drift for change in changes])
    return Change(f"{group}, all {len(changes)}", old_s, new_s, spreads, drift, changes[0].own, is_group=True)


def broken_cells(old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    """Octavo's lines that were right and no longer are."""
    passed = {record.key for record in old if record.passed}
    for record in records.latest(new):
        if record.key in passed and not record.passed and _is_own(record):
            yield f"{_name(record)}: {record.verdict} {record.detail}"


def _drift(old: Quantity, new: Quantity) -> float:
    """By what share the probes took longer; 0 where there are none."""
    return median(new.probes) / median(old.probes) - 1 if old.probes and new.probes else 0.0


def _machine(old: Results, new: Results, changes: Sequence[Change]) -> str:
    """A sentence where the machine itself, or the peers on it, are not what they were."""
    share = new.run.bandwidth / old.run.bandwidth - 1
    peers = [change.share for change in changes if not change.own and not change.is_group]
    drifts = [change.drift for change in changes if change.drift and not change.is_group]
    parts = [f"the measured bandwidth changed by {100 * share:+.0f} %"] if abs(share) > MIN_CHANGE else []
    if peers and abs(median(peers)) > MIN_CHANGE:
        parts.append(f"the peers' times changed by {100 * median(peers):+.0f} %")
    if drifts and abs(median(drifts)) > MIN_CHANGE:
        parts.append(f"a fixed piece of work took {100 * median(drifts):+.0f} %")
    return f"mind the machine first: {' and '.join(parts)}" if parts else ""


def _is_own(record: Any) -> bool:
    if isinstance(record, Decode):
        return record.contender.startswith(OWN)
    return not isinstance(record, Op) or record.backend not in PEER_OPS


def _quantities(record: Any) -> list[Quantity]:
    """What is compared of a record."""
    name = _name(record)
    if isinstance(record, Decode):
        steps = [median(steps) for steps in record.step_s if steps]
        return [
            Quantity(f"{name} step", steps, record.step_probe_s, record.who),
            Quantity(f"{name} first token", record.ttft_s, record.prefill_probe_s, record.who),
        ]
    if isinstance(record, Serve):
        gaps = [median(gaps) for gaps in record.itl_s if gaps]
        return [Quantity(f"{name} first token", _chunks(record.ttft_s)), Quantity(f"{name} gap", _chunks(gaps))]
    if isinstance(record, Scenario):
        return [Quantity(name, record.seconds)]
    return [Quantity(name, _chunks(record.samples))]


def _name(record: Measured) -> str:
    return f"{record.who} {record.place}".strip()


def _chunks(samples: Sequence[float]) -> list[float]:
    """Medians of successive fifths."""
    size = max(1, len(samples) // CHUNKS)
    return [median(samples[start : start + size]) for start in range(0, len(samples) - size + 1, size)]


def _noise(samples: Sequence[float]) -> float:
    """Half the confidence interval of the median, by ranks, as a share of the median; 1 for a single sample."""
    if len(samples) < 2:
        return 1.0
    ordered, out = sorted(samples), _ranks_outside(len(samples))
    return (ordered[-1 - out] - ordered[out]) / 2 / median(samples)


def _ranks_outside(count: int) -> int:
    """How many samples at either end the interval leaves out: a binomial tail of at most UNLIKELY / 2."""
    out, tail = 0, 2.0**-count
    while tail + comb(count, out + 1) * 2.0**-count <= UNLIKELY / 2:
        out += 1
        tail += comb(count, out) * 2.0**-count
    return out


def _table(changes: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in ("what", "old ms", "new ms", "change", "noise", "machine", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for change in sorted(changes, key=lambda change: -change.share):
        machine = f"{100 * change.drift:+.0f} %" if change.drift else "-"
        table.add_row(
            change.what, f"{change.old_s * 1e3:.3g}", f"{change.new_s * 1e3:.3g}", f"{100 * change.share:+.0f} %",
            f"{100 * change.noise:.0f} %", machine, change.status, style=STYLES[change.status],
        )  # fmt: skip
    return table
