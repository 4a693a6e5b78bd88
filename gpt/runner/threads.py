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
    if "OMP_NUM_THREADS" not in os.environ and wanted == len(os.sched_getaffinity(os.getpid())):
        wanted = min(wanted, quota(CGROUP_QUOTA))  # the number is PyTorch's own, not the user's
    return max(1, min(wanted, limit))


def place_team(num_threads: int) -> None:
    """Give each thread of the calling thread's team a core of its own, where they are as many as the cores.

    Beside busy programs the system may put two of the team on one core for good: each then waits for the other's turn,
    and a step takes three times as long. A smaller team goes wherever there is room.
    """
    library, cores = _libgomp(), sorted(os.sched_getaffinity(os.getpid()))
    if library is None:
        return

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def place(_: int | None) -> None:
        number = library.omp_get_thread_num()
        os.sched_setaffinity(0, {cores[number]} if num_threads == len(cores) else cores)

    start = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start(("GOMP_parallel", library))(ctypes.cast(place, ctypes.c_void_p), None, num_threads, 0)


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
