"""The launch table: static facts (arch, dtype, head_dim, weight shape) -> tile sizes, warps, stages.

Plain data and one small lookup per op; nothing is measured or chosen at run time. A lookup takes the tensor's device
and resolves its arch once; what no table lists follows the rule in its lookup. Bits may depend on a row's BLOCK_K and
key tile only, so those are fixed per weight shape or head_dim, whatever the number of rows. To add a GPU: add its
rows, run `python -m octavo.kernels.codegen --arch sm_NN`.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """How one kernel is launched: `kernel[grid](..., **row.kwargs)`."""

    num_warps: int
    num_stages: int
    tiles: dict[str, int] = field(default_factory=dict)  # the kernel's constexpr names -> sizes

    @property
    def kwargs(self) -> dict[str, int]:
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Waiver:
    """A limit of codegen.py that a row cannot hold, and why: where all of `where` match constexprs or dtype."""

    kernel: str
    check: str  # spill | shared | tensor_core | wide_load
    archs: tuple[str, ...]
    where: dict[str, Any]
    reason: str


ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@cache
def arch_of(device: torch.device) -> str:
    """The table's name for a device: one of `ARCHS`, or "interpreter" where Triton runs without a GPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"device {device} has compute capability {major}.{minor}; the Triton kernels need 8.0")
    # sm_8x and sm_12x have mma.sync and 99 KB of shared memory a program: rows of sm_80 keep within that.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def row(num_warps: int, num_stages: int, **tiles: int) -> Row:
    return Row(num_warps, num_stages, tiles)


WAIVERS: tuple[Waiver, ...] = ()


def write_kv(device: torch.device, width: int) -> Row:
    """A program copies up to 1024 of the `num_kv_heads * head_dim` values of one token, 8 a thread: 16 bytes in bf16."""
    tile = min(1024, max(64, 1 << (width - 1).bit_length()))
    return row(max(1, tile // 256), 1, TILE=tile)
