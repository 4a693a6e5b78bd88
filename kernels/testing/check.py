"""All cases of a backend, in one call."""

import torch

from octavo.kernels.ops import OP_NAMES, REFERENCE, Ops
from octavo.kernels.testing import attention_cases, layer_cases, sampling_cases
from octavo.kernels.testing.case import WITH_WEIGHT, Case
from octavo.kernels.testing.inputs import DEVICE

CASES = layer_cases.CASES | attention_cases.CASES | sampling_cases.CASES


def cases(op: str) -> list[Case]:
    """Every case of that op, those of `pack` being those of `linear`; ValueError where there is no such op."""
    if op not in OP_NAMES:
        raise ValueError(f"op must be one of {', '.join(OP_NAMES)}, not {op!r}")
    return list(CASES["linear" if op == "pack" else op]())


def check(ops: Ops, device: torch.device = DEVICE) -> int:
    """Call every function of the backend that is not the reference's own, with every case and format that it takes.

    Returns how many calls were right. AssertionError with a line for each op that is not: the op, the case, its error
    and the allowed one.
    """
    replaced = {name for name in OP_NAMES if getattr(ops, name) is not getattr(REFERENCE, name)}
    if "pack" in replaced:
        replaced |= set(WITH_WEIGHT)
    right, faults = 0, []
    for op in OP_NAMES:
        if op not in replaced or op == "pack":
            continue
        try:
            for case in cases(op):
                if case.format is None or case.format in ops.formats:
                    case.check(ops, device)
                    right += 1
        except AssertionError as fault:
            faults.append(str(fault))
    if faults:
        raise AssertionError("\n".join(faults))
    return right
