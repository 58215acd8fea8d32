"""World with far more independent features than dimensions."""

import torch

from saefast import checks
from saefast.synthetic.world import World, unit_directions, world_generator

FIRING = ("constant", "log_uniform")


def sphere_world(
    count: int = 3200,
    d: int = 100,
    *,
    firing: str = "constant",
    l0: float = 20.0,
    decades: float = 4.3,
    seed: int = 0,
) -> World:
    """Create a world whose features fire independently, with strengths LogNormal(0, 0.25).

    Directions are uniform on the sphere.

    Args:
        count: number of features.
        d: width of a row.
        firing: "constant": every feature fires equally often; "log_uniform": rates are uniform on a
            logarithmic scale.
        l0: number of features per row, on average over all rows and worlds.
        decades: powers of ten by which log-uniform rates differ. With the defaults they lie between
            10^-5.5 and 10^-1.2.
        seed: seed of directions, rates and rows.

    Returns:
        World with `count` features.
    """
    for name, value in (("count", count), ("d", d)):
        checks.whole(name, value, 1)
    checks.one_of("firing", firing, FIRING)
    checks.at_least("l0", l0, 0)
    checks.at_least("decades", decades, 0)
    generator = world_generator(seed)
    features = unit_directions(count, d, generator)
    rates = torch.full((1, count), l0 / count, dtype=torch.float64)
    if firing == "log_uniform" and decades > 0:
        drawn = torch.rand(1, count, generator=generator, dtype=torch.float64)
        shape = 10 ** (-decades * drawn)
        # Mean of 10^-u for u uniform between 0 and `decades`.
        rates *= shape * decades * torch.tensor(10.0).double().log() / (1 - 10**-decades)
    return World(features, rates, seed=seed)
