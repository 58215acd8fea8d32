"""Findings on a run in words, compared with published results."""

from collections.abc import Callable, Iterator

from saefast.report.findings import evaluations, stability, worth
from saefast.report.findings.finding import Finding
from saefast.report.run_data import RunData

_FIND: tuple[Callable[[RunData], Iterator[Finding]], ...] = (
    stability.stable_share,
    stability.pairs,
    worth.asymmetry,
    worth.language_model,
    worth.frequency,
    worth.surface_form,
    stability.subspaces,
    stability.contributions,
    stability.pooling,
    stability.dead,
    evaluations.probing,
    evaluations.explaining,
    evaluations.surface_form,
    evaluations.steering,
    evaluations.prediction,
    evaluations.editing,
    evaluations.absorption,
)


def all_findings(data: RunData) -> list[Finding]:
    """Return all findings that the files of a run allow, the most important first.

    Args:
        data: files of the run.

    Returns:
        Findings in words, with their figures.
    """
    return [finding for find in _FIND for finding in find(data)]


__all__ = ["Finding", "all_findings"]
