"""Feature absorption: latents of single words that replace the main latents of their class."""

from saefast.evaluation.absorption.evaluation import absorb, absorb_rows

__all__ = ["absorb", "absorb_rows"]
