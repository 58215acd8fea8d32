"""Stability scores of features across SAEs of different seeds, and overlaps of dictionaries."""

from saefast.stability.clusters import Clusters, find_clusters
from saefast.stability.membership import fit_power_law, membership_counts, subset_curve
from saefast.stability.overlap import Overlap, measure_overlap
from saefast.stability.overlap_measures import Measure
from saefast.stability.result import Stability, StabilityRule
from saefast.stability.score import at_threshold, score_stability, stability_curve

__all__ = [
    "Clusters",
    "Measure",
    "Overlap",
    "Stability",
    "StabilityRule",
    "at_threshold",
    "find_clusters",
    "fit_power_law",
    "measure_overlap",
    "membership_counts",
    "score_stability",
    "stability_curve",
    "subset_curve",
]
