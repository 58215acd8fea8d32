"""World with the statistics of language: Zipf's law, families of features, and correlations.

It plants the same structure as SynthSAEBench (Chanin and Garriga-Alonso 2026), at a
size that takes minutes.
"""

import torch
from torch import Tensor

from saefast import checks
from saefast.linalg import one_thread
from saefast.synthetic.world import Strength, World, unit_directions, world_generator

_FULL = 0.95
"""Largest share of a parent's rows that all its children take together."""


def nested_world(
    count: int = 2048,
    d: int = 128,
    *,
    exponent: float = 0.5,
    rates: tuple[float, float] = (5e-4, 0.4),
    trees: int = 16,
    branching: int = 4,
    depth: int = 3,
    rank: int = 25,
    loading: float = 0.1,
    contexts: int = 256,
    seed: int = 0,
) -> World:
    """Create a world whose features fire by Zipf's law, in families, and correlated.

    Directions are uniform on the sphere. Features are numbered by the rate that the law gives them,
    the most frequent first. Children in a family fire less often than that where their siblings
    together would exceed their parent; `World.firing_rate` holds the actual rates. Roots of
    families and features without a family are correlated by a Gaussian copula: each has loadings on
    `rank` factors, which are drawn for a row, and its own noise; it fires if the sum is above its
    threshold. Factors come from a pool of `contexts` draws, over which every rate is exact.

    Args:
        count: number of features.
        d: width of a row.
        exponent: exponent of Zipf's law.
        rates: rates of the last and the first feature, before families reduce them.
        trees: number of families.
        branching: number of children of a feature in a family, of which one fires at a time.
        depth: number of generations below the root.
        rank: number of factors of the correlation.
        loading: standard deviation of the loadings; 0 makes roots independent.
        contexts: number of draws of the factors.
        seed: seed of the world and of its rows.

    Returns:
        World whose mean strengths go from 5 for the most frequent feature to 4, with spreads `|z|`
        for z ~ N(0.5, 0.5), and whose bias has length 0.5.
    """
    _check(count, d, exponent, rates, trees, branching, depth, rank, loading, contexts)
    generator = world_generator(seed)
    features = unit_directions(count, d, generator)
    wanted = _zipf(count, exponent, *rates)
    parent = _families(count, trees, branching, depth, generator)
    roots = _copula(wanted, rank, loading, contexts, generator)
    spread = (0.5 + 0.5 * torch.randn(count, generator=generator)).abs()
    return World(
        features,
        torch.where(parent >= 0, _shares(wanted, parent), roots),
        strength=Strength(torch.linspace(5, 4, count), spread, log=False),
        parent=parent,
        bias=0.5 * unit_directions(1, d, generator)[0],
        seed=seed,
    )


def _zipf(count: int, exponent: float, low: float, high: float) -> Tensor:
    """Return the rates of the law, [count] float64 from `high` to `low`."""
    law = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    last = law[-1]
    return low + (high - low) * (law - last) / (1 - last) if last < 1 else law * high


def _families(
    count: int, trees: int, branching: int, depth: int, generator: torch.Generator
) -> Tensor:
    """Return the parent of each feature, [count] int64; parents are more frequent than children."""
    size = sum(branching**level for level in range(depth + 1))
    parent = torch.full((count,), -1)
    members = torch.randperm(count, generator=generator)[: trees * size]
    for family in members.view(trees, size).sort(dim=1).values:
        # Breadth first: the children of member i follow those of member i - 1.
        above = (torch.arange(1, size) - 1) // max(branching, 1)
        parent[family[1:]] = family[above]
    return parent


def _shares(wanted: Tensor, parent: Tensor) -> Tensor:
    """Return how often a child fires given its parent, [count] float64, limited for siblings."""
    above = parent.clamp(min=0)
    share = torch.where(parent >= 0, wanted / wanted[above], 0.0)
    total = torch.zeros_like(wanted).index_add_(0, above, share)
    return share * (_FULL / total.clamp(min=_FULL))[above]


def _copula(
    wanted: Tensor, rank: int, loading: float, contexts: int, generator: torch.Generator
) -> Tensor:
    """Return how often each feature fires in each context, [contexts, count] float64."""
    if loading == 0:
        return wanted[None]
    loadings = loading * torch.randn(len(wanted), rank, generator=generator, dtype=torch.float64)
    # Leave every feature some noise of its own.
    loadings /= loadings.norm(dim=1, keepdim=True).clamp(min=0.95) / 0.95
    factors = torch.randn(contexts, rank, generator=generator, dtype=torch.float64)
    with one_thread():
        shift = factors @ loadings.T
    noise = (1 - loadings.square().sum(1)).sqrt()
    low, high = (torch.full_like(wanted, edge) for edge in (-12.0, 12.0))
    for _ in range(60):
        middle = (low + high) / 2
        with one_thread():
            too_many = torch.special.ndtr((shift - middle) / noise).mean(0) > wanted
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    rates: Tensor = torch.special.ndtr((shift - high) / noise)
    return rates.clamp(max=1 - 1e-9)


def _check(
    count: int,
    d: int,
    exponent: float,
    rates: tuple[float, float],
    trees: int,
    branching: int,
    depth: int,
    rank: int,
    loading: float,
    contexts: int,
) -> None:
    whole = {"count": count, "d": d, "rank": rank, "contexts": contexts}
    for name, value in (whole | {"trees": trees, "branching": branching, "depth": depth}).items():
        checks.whole(name, value, 1 if name in whole else 0)
    for name, number in (("exponent", exponent), ("loading", loading)):
        checks.at_least(name, number, 0)
    if not 0 < rates[0] <= rates[1] < 1:
        raise ValueError(f"rates must be (least, most) between 0 and 1, got {rates}")
    size = sum(branching**level for level in range(depth + 1))
    if trees * size > count:
        raise ValueError(
            f"count must be at least {trees * size} for {trees} families of {size} features, got "
            f"{count}; reduce trees or depth"
        )
