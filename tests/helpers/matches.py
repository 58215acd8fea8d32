"""Random matches between dictionaries."""

import itertools

import torch
from helpers.strategies import generator

from saefast import Matches
from saefast.match import Proof

PROOF = Proof(
    value=1.0,
    upper_bound=1.0,
    certified=True,
    rounds=1,
    row_price=torch.zeros(0),
    column_price=torch.zeros(0),
)


def random_matches(sizes: list[int], seed: int, one_to_one: bool = False) -> dict:
    """Draw random partners."""
    found = {}
    for s, t in itertools.permutations(range(len(sizes)), 2):
        random = generator(seed + 100 * s + t)
        m = sizes[s]
        partner = torch.randint(-1, sizes[t], (m,), generator=random)
        similarity = torch.rand(m, generator=random) * (partner >= 0)
        mutual = (torch.rand(m, generator=random) < 0.5) & (partner >= 0)
        found[s, t] = Matches(
            partner=partner,
            similarity=similarity,
            mutual=mutual,
            proof=PROOF if one_to_one else None,
        )
    return found
