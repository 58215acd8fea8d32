"""What each variant of SAE is trained for: its forward pass and the gradients of its loss."""

from saefast.objectives.forward import Forward, Objective
from saefast.objectives.topk import TopK
from saefast.sae import SAE

__all__ = ["Forward", "Objective", "TopK", "objective_of"]

_OBJECTIVES: dict[str, type[Objective]] = {"topk": TopK}


def objective_of(sae: SAE) -> Objective:
    """The usual objective of the SAE's variant."""
    return _OBJECTIVES[sae.variant]()
