"""Experiments on data whose truth is known, end to end, each a function with a table as result."""

from saefast.studies.lowrank import run_lowrank

__all__ = ["run_lowrank"]
