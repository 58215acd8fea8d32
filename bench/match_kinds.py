"""Dictionaries that are hard to match in different ways, and the optimum of a dense solver."""

import torch
from torch import Tensor

from saefast import Matches
from saefast.match import one_to_one

KINDS = ("isotropic", "hubs", "duplicates", "ties", "dead", "opposite")


def features(kind: str, m: int, m2: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two dictionaries of that kind, with m and m2 features of width d."""
    if kind == "ties":
        a = torch.randint(-1, 2, (m, d), generator=_generator(seed)).float()
        return a, torch.randint(-1, 2, (m2, d), generator=_generator(seed + 1)).float()
    a = torch.randn(m, d, generator=_generator(seed))
    b = torch.randn(m2, d, generator=_generator(seed + 1))
    if kind == "hubs":
        spectrum = torch.arange(1, d + 1) ** -0.5
        return a * spectrum + 0.2, b * spectrum + 0.2
    if kind == "duplicates":
        few = a[: max(m // 8, 1)]
        picks = torch.randint(len(few), (m2,), generator=_generator(seed))
        return few[torch.arange(m) % len(few)], few[picks]
    if kind == "dead":
        a[::3], b[1::2] = 0, 0
    if kind == "opposite":
        shared = min(m, m2)
        b[:shared] = -a[:shared].flip(0)
    return a, b


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosines(a: Tensor, b: Tensor, absolute: bool = False) -> Tensor:
    """Return cosines [m, m2] float64, NaN for rows of zeros."""
    a, b = a.double(), b.double()
    product: Tensor = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
    return product.abs() if absolute else product


def alive(side: Tensor) -> Tensor:
    """Return the numbers of the rows that are not zero."""
    return (side != 0).any(1).nonzero()[:, 0]


def best_value(similarity: Tensor, floor: float | None) -> float:
    """Return the optimum of scipy's dense solver; unmatched rows take additional columns."""
    from scipy.optimize import linear_sum_assignment

    if floor is not None:
        own = torch.zeros(len(similarity), len(similarity), dtype=similarity.dtype)
        similarity = torch.cat([similarity - floor, own], 1)
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return float(similarity[rows, columns].sum())


def assert_proven(
    matches: Matches, a: Tensor, b: Tensor, floor: float | None = None, absolute: bool = False
) -> None:
    """Assert that the prices prove the matching optimal, without trusting `certified`."""
    rows, columns = alive(a), alive(b)
    similarity = cosines(a[rows], b[columns], absolute)
    assert matches.proof is not None
    u, v = matches.proof.row_price[rows], matches.proof.column_price[columns]
    partner = matches.partner[rows]
    paired = partner >= 0
    least = one_to_one.UNMATCHED if floor is None else floor
    assert (u[:, None] + v - similarity >= -1e-7).all()
    assert (u >= least).all()
    assert (v >= 0).all()
    where = torch.searchsorted(columns, partner[paired])
    assert torch.equal(columns[where], partner[paired])
    assert len(where.unique()) == len(where)
    slack = u[paired] + v[where] - similarity[paired, where]
    assert slack.abs().max() <= 1e-7 if len(slack) else True
    assert (u[~paired] <= least + 1e-7).all()
    free = torch.ones(len(columns), dtype=torch.bool)
    free[where] = False
    assert (v[free] == 0).all()
    shown = matches.similarity[rows[paired]].double()
    assert ((shown - similarity[paired, where]).abs() <= 1e-6).all()
