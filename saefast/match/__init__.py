"""Matching of features between dictionaries: nearest, certified one-to-one, or all pairs."""

from saefast.match.all_pairs import match_all
from saefast.match.by_activations import activation_matches
from saefast.match.features import match_features
from saefast.match.plan import plan_matching
from saefast.match.result import Matches, Proof

__all__ = [
    "Matches",
    "Proof",
    "activation_matches",
    "match_all",
    "match_features",
    "plan_matching",
]
