"""Small SAEs with the objective of each variant."""

from collections.abc import Callable

import torch

from saefast import SAE
from saefast.train.objectives import (
    BatchTopK,
    FusedPath,
    JumpReLU,
    Matryoshka,
    Objective,
    ReLU,
    TopK,
)

MADE: dict[str, tuple[str, Callable[[SAE], Objective]]] = {
    "topk": ("topk", lambda sae: TopK()),
    "by norm": ("topk", lambda sae: TopK()),
    "abstopk": ("abstopk", lambda sae: TopK(absolute=True)),
    "abstopk by norm": ("abstopk", lambda sae: TopK(absolute=True)),
    "batchtopk": ("batchtopk", BatchTopK),
    "matryoshka": ("matryoshka", lambda sae: Matryoshka(sae, (0.1, 0.3))),
    "relu": ("relu", lambda sae: ReLU(0.3)),
    "jumprelu": ("jumprelu", lambda sae: JumpReLU(2.0, 0.4)),
}


def make(
    name: str, d_out: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[SAE, Objective]:
    """Make a small SAE away from its initial weights, and its objective."""
    variant, objective = MADE[name]
    by_norm = name.endswith("by norm")
    sae = SAE(16, 96, variant=variant, k=5, seed=1, d_out=d_out, dtype=dtype, by_norm=by_norm)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in sae.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.2 * noise.to(dtype)
        if name in ("relu", "jumprelu"):
            sae.b_enc -= 0.5
        if name == "jumprelu":
            sae.jump_threshold.abs_()
    return sae, objective(sae)


class Dense:
    """An objective that hides its fused path."""

    fused = FusedPath.NEVER
    room = None

    def __init__(self, inside: Objective) -> None:
        self.loss, self.state = inside.loss, inside.state
