"""Benchmarks: `python -m bench CASE --json FILE`, with a module for each case."""

import sys
from pathlib import Path

# Python puts the checkout first on its path, and saefast/ there has no compiled kernels: measure
# the installed package instead. This package is imported already and keeps its own path.
_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _CHECKOUT]
