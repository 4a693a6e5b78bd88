"""What a run of `decode` measures: a command after every word of it was checked."""

from dataclasses import dataclass
from typing import Any

import torch

from octavo.bench.measuring import machine
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.measuring.workloads import Budget, Cell
from octavo.bench.peers import base, registry
from octavo.bench.peers.base import Contender, Octavo, Setting
from octavo.bench.peers.sources import Source
from octavo.bench.reporting.schema import Run
from octavo.kernels.ops import Ops
from octavo.kernels.weights import FORMATS

Entry = tuple[Ops | str, str]  # a backend or a peer's name, and a dtype


@dataclass(frozen=True)
class Plan:
    """A checked command: nothing in it is unknown or impossible."""

    source: Source
    device: torch.device
    dtypes: tuple[str, ...]
    backends: tuple[Ops, ...]
    peers: tuple[str, ...]
    cells: tuple[Cell, ...]
    effort: Budget
    seed: int

    @property
    def entries(self) -> list[Entry]:
        """Who runs, a backend or a peer's name, and in which dtype; a peer's own format is run once."""
        pairs: list[Entry] = []
        for dtype in self.dtypes:
            names = [registry.in_int8(name) if dtype in FORMATS else name for name in self.peers]
            pairs += [(who, dtype) for who in (*self.backends, *names) if who is not None]
        first: dict[Any, str] = {
            who: dtype for who, dtype in reversed(pairs) if isinstance(who, str) and registry.has_own_format(who)
        }
        return [(who, dtype) for who, dtype in dict.fromkeys(pairs) if first.get(who, dtype) == dtype]

    @property
    def groups(self) -> dict[str, list[Entry]]:
        """The entries that are open together and take turns: on a CPU those of a dtype, but for peers that disturb
        others; a GPU's memory is for one.
        """
        found: dict[str, list[Entry]] = {}
        for who, dtype in self.entries:
            alone = self.device.type != "cpu" or (isinstance(who, str) and registry.disturbs(who))
            found.setdefault(f"{label(who)} {dtype}" if alone else dtype, []).append((who, dtype))
        return found

    def open(self, who: Ops | str, dtype: str) -> Contender:
        batch = max(cell.batch for cell in self.cells)
        context = max(cell.prompt_tokens + cell.new_tokens for cell in self.cells)
        setting = Setting(self.source, dtype, self.device, torch.get_num_threads(), batch, context)
        return registry.open_peer(who, setting) if isinstance(who, str) else Octavo(setting, who)

    def describe(self, peaks: Peaks) -> Run:
        packages = [registry.PEERS[name.partition(":")[0]].distribution for name in self.peers]
        planned = len(self.entries) * len(self.cells)
        about = machine.describe(self.device, packages)
        return Run(command="decode", seed=self.seed, planned=planned, **peaks._asdict(), **about)


def named(entry: Entry) -> tuple[str, str]:
    return label(entry[0]), entry[1]


def label(who: Ops | str) -> str:
    return who if isinstance(who, str) else base.OWN + who.name
