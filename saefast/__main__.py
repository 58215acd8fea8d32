"""`python -m saefast` is the command line."""

import sys

from saefast.cli import main

sys.exit(main())
