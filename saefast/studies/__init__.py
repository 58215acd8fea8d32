"""End-to-end experiments on data with known features, each a function that returns a table."""

from saefast.studies.digits import run_digits
from saefast.studies.lowrank import run_lowrank
from saefast.studies.recovery import run_recovery
from saefast.studies.validity import run_validity

__all__ = ["run_digits", "run_lowrank", "run_recovery", "run_validity"]
