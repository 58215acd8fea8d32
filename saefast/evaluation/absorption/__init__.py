"""Measure how much other latents carry of what the latents of a class should tell."""

from saefast.evaluation.absorption.evaluation import absorb, absorb_rows

__all__ = ["absorb", "absorb_rows"]
