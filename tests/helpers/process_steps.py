"""Steps of the processes that torchrun started, compared with steps of one process.

python -m helpers.process_steps

Rank 0 prints the number of trainings that were compared; the first difference is an error.
"""

from itertools import product

import torch
from helpers.shared_steps import (
    PENALTIES,
    SELECTING,
    assert_rank_agrees,
    copied,
    rows,
    take,
    with_gradients_of_thresholds,
    with_thresholds,
)

from saefast import SAE, AuxK, FusedStep, Rules
from saefast.train.objectives import usual_objective
from saefast.train.ranks import ALONE, Ranks
from saefast.train.ranks.processes import world

CASES = list(
    product((*SELECTING, "relu", "jumprelu"), (torch.float32, torch.float64), (False, True))
)
"""Variant, dtype, and whether AuxK, clipping and penalties take part."""


def compare(ranks: Ranks, variant: str, dtype: torch.dtype, everything: bool) -> None:
    """Train by this process alone and by all; the bits must be the same."""
    d, m, k, data = 40, 300, 4, rows(4, 50, 40, 1, dtype)
    ks = [6, 5, 4, 4]
    if variant in SELECTING:
        sae, objective_of = SAE(d, m, k=k, seed=3, dtype=dtype, variant=variant), usual_objective
    else:
        sae = with_thresholds(variant, -12.0, d, m, k, dtype)
        objective_of = with_gradients_of_thresholds

    def step_of(of: Ranks) -> FusedStep:
        return FusedStep(
            copied(sae),
            lr=1e-2,
            objective=objective_of(sae),
            rules=Rules(clip=0.5, penalties=PENALTIES) if everything else Rules(),
            auxk=AuxK(k=6, dead_after=60) if everything else None,
            ranks=of,
        )

    assert_rank_agrees(step_of(ranks), data, ks, *take(step_of(ALONE), data, ks))


def main() -> None:
    """Compare all cases."""
    torch.set_num_threads(1)
    ranks = world()
    assert ranks.size > 1
    for case in CASES:
        compare(ranks, *case)
    if ranks.rank == 0:
        print(f"{len(CASES)} trainings compared")


if __name__ == "__main__":
    main()
