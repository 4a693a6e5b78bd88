"""Limits that a launch configuration cannot hold, each with the reason."""

from dataclasses import dataclass
from typing import Any

from octavo.kernels.triton.launch import ARCHS


@dataclass(frozen=True)
class Waiver:
    """A limit that a config of the table cannot hold, and why: where all of `where` match constexprs or dtype."""

    kernel: str
    check: str  # spill | shared | tensor_core | k_order | wide_load
    archs: tuple[str, ...]
    where: dict[str, Any]
    reason: str


WAIVERS: tuple[Waiver, ...] = (
    Waiver("_merge_kernel", "wide_load", ARCHS[:3], {"HEAD_TILE": 64}, "64 values of a piece are 8 bytes a lane"),
    Waiver("_bias_kernel", "wide_load", ARCHS[:3], {}, "an id a lane: the logits it changes lie scattered"),
    *(
        Waiver(kernel, "wide_load", ARCHS[:3], {"VOCAB_SIZE": 50257}, "rows of 50,257 values are not aligned")
        for kernel in ("_scan_kernel", "_choose_kernel", "_rank_kernel", "_penalties_kernel")
    ),
    Waiver(
        "_best_kernel", "wide_load", ARCHS[:3], {"NUM_TILES": 1571}, "rows of 1,571 tiles (50,257 ids) are not aligned"
    ),
)
