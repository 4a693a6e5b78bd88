"""The plan of a run of `decode`: contenders, grid and budget."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from octavo.bench.measuring.workloads import Budget, GridPoint
from octavo.bench.peers import base, registry
from octavo.bench.peers.base import Contender, Octavo, RunSettings
from octavo.bench.peers.sources import ModelSource
from octavo.kernels.ops import Ops
from octavo.kernels.weights import FORMATS


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
    budget: Budget
    seed: int

    @property
    def entries(self) -> list[Entry]:
        """The contenders in each dtype; a peer in a format of its own runs once, whatever the dtypes of the run."""
        found: dict[Any, Entry] = {}
        for dtype in self.dtypes:
            peers = [registry.in_int8(name) if dtype in FORMATS else name for name in self.peers]
            contenders: list[Ops | str] = [*self.backends, *(name for name in peers if name)]
            for who in contenders:
                once = isinstance(who, str) and registry.has_own_format(who)
                found.setdefault(who if once else (who, dtype), Entry(who, dtype))
        return list(found.values())

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

    def open(self, entry: Entry) -> Contender:
        """The contender with its weights loaded and room for every point of the grid."""
        batch = max(point.batch for point in self.points)
        context = max(point.prompt_tokens + point.new_tokens for point in self.points)
        settings = RunSettings(self.source, entry.dtype, self.device, torch.get_num_threads(), batch, context)
        return registry.open_peer(entry.who, settings) if isinstance(entry.who, str) else Octavo(settings, entry.who)
