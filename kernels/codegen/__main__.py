"""`python -m octavo.kernels.codegen`. Worker processes import compiler.py, which they cannot do with this file."""

import sys

from octavo.kernels.codegen.compiler import main

if __name__ == "__main__":
    sys.exit(main())
