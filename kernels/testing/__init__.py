"""What a kernel is tested with, for packages of any repository: the one tolerance, and cases of every op.

`check(ops)` runs all of a backend's own functions; `cases(op)` are the same for pytest's `parametrize`, each of them
called with the backend: `case.check(ops)`.
"""

from octavo.kernels.testing.case import Case
from octavo.kernels.testing.check import cases, check
from octavo.kernels.testing.numerics import assert_accurate, assert_within

__all__ = ["Case", "assert_accurate", "assert_within", "cases", "check"]
