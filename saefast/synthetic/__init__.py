"""Synthetic activations with known features, to measure how many of them a dictionary finds."""

from saefast.synthetic.low_rank import LowRankWorld
from saefast.synthetic.nested import nested_world
from saefast.synthetic.planted import PlantedWorld
from saefast.synthetic.sphere import sphere_world
from saefast.synthetic.truth import Explanation, Recovery, explain, keep_only, recovery
from saefast.synthetic.world import Drawn, Strength, World

__all__ = [
    "Drawn",
    "Explanation",
    "LowRankWorld",
    "PlantedWorld",
    "Recovery",
    "Strength",
    "World",
    "explain",
    "keep_only",
    "nested_world",
    "recovery",
    "sphere_world",
]
