"""Path of the checkout, for tests of files that are not installed."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
