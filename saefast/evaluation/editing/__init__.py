"""Causal editing: changes of one attribute of entities by interchanging latents."""

from saefast.evaluation.editing.evaluation import edit
from saefast.evaluation.editing.facts import Facts, places
from saefast.evaluation.editing.knowledge import Knowledge, known_facts
from saefast.evaluation.editing.ravel import ravel_facts

__all__ = ["Facts", "Knowledge", "edit", "known_facts", "places", "ravel_facts"]
