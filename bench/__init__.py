"""Benchmarks: `python -m bench CASE --json FILE`, one file per thing timed."""

import sys
from pathlib import Path

# Python puts the checkout first, whose saefast/ has no compiled kernels: what is measured is the
# installed package. This package is found already and keeps its own path.
_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _CHECKOUT]
