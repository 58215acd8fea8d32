"""Entry point of the command line as `python -m saefast`."""

import sys

from saefast.cli import main

sys.exit(main())
