"""Sweeps: runs over a grid of settings, which share rows of activations and passes over them."""

from saefast.sweep.definition import Cell, Sweep, read_sweep, sweep_from
from saefast.sweep.driver import SweepOutcome, run_sweep
from saefast.sweep.folder import SweepFolder
from saefast.sweep.harvest_driver import harvest_by_processes
from saefast.sweep.match_driver import match_by_processes
from saefast.sweep.plan import SweepPlan, plan_sweep
from saefast.sweep.report import write_sweep_report, write_table_and_report
from saefast.sweep.table import write_results

__all__ = [
    "Cell",
    "Sweep",
    "SweepFolder",
    "SweepOutcome",
    "SweepPlan",
    "harvest_by_processes",
    "match_by_processes",
    "plan_sweep",
    "read_sweep",
    "run_sweep",
    "sweep_from",
    "write_results",
    "write_sweep_report",
    "write_table_and_report",
]
