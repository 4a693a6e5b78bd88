"""`python -m octavo.gpt` is the command `octavo`."""

import sys

from octavo.gpt.cli import main

sys.exit(main())
