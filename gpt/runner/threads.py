"""The OpenMP threads that a step may count on: fewer than PyTorch believes where the system hands out fewer.

PyTorch's products leave work undone when libgomp gives them a smaller team than they asked for (OMP_THREAD_LIMIT,
OMP_DYNAMIC), so no more are asked for than will come. A container's quota of processor time counts as well: threads
beyond it only wait for each other.
"""

import ctypes
import math
import os
import sys
import warnings
from functools import cache
from pathlib import Path

OMP_PAUSE_SOFT = 1
SPIN_COUNT = 10_000
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def share_cores() -> None:
    """Let OpenMP's threads wait awake for 0.1 ms at most, before PyTorch is loaded; what the user set stays.

    libgomp's own 3 ms make a step no faster, and when other programs want the cores they cost it many times its length:
    a thread that waits for another keeps the other from running.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def usable_threads(wanted: int) -> int:
    """Return how many of `wanted` threads a parallel region of the calling thread really gets."""
    library = _libgomp()
    if library is None:
        if wanted > 1:
            _warn(
                "this PyTorch does not compute with libgomp: Octavo's own CPU kernels run on one thread "
                "(another OpenMP library may be preloaded: LD_PRELOAD, or a PyTorch from conda)"
            )
        return wanted
    library.omp_set_dynamic(0)
    limit = library.omp_get_thread_limit()
    if limit < wanted:
        _warn(f"OMP_THREAD_LIMIT allows {limit} of {wanted} threads")
    if "OMP_NUM_THREADS" not in os.environ and wanted == len(os.sched_getaffinity(0)):
        wanted = min(wanted, quota(CGROUP_QUOTA))  # the number is PyTorch's own, not the user's
    return max(1, min(wanted, limit))


def release_team() -> None:
    """End the idle OpenMP threads of the calling thread; its next parallel region starts them anew, in 0.1 ms.

    libgomp lets no thread wait awake once there are more threads than cores in all teams together, whoever computes:
    a step then takes nearly twice as long, and so do the caller's own products. So one team at a time is alive.
    """
    library = _libgomp()
    if library is not None and hasattr(library, "omp_pause_resource_all"):
        library.omp_pause_resource_all(OMP_PAUSE_SOFT)


def quota(path: Path) -> int:
    """Return the processors that a container's quota is worth, rounded up; a huge number where there is none."""
    try:
        allowed, period = path.read_text().split()
        return max(1, math.ceil(int(allowed) / int(period)))
    except (OSError, ValueError):
        return 2**31 - 1


@cache
def _libgomp() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch loaded; None where it is another one."""
    try:
        return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return None


@cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
