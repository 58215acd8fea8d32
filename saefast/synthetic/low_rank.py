"""Why features may not come back one by one, and yet span the same plane in every seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import checks
from saefast.linalg import one_thread
from saefast.synthetic.world import World, unit_directions, world_generator


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankWorld(World):
    """A block of features of their own, and many rare ones inside a plane of few dimensions.

    An SAE has fewer latents to spend on the plane than it holds features, so latents there are
    mixtures that differ from seed to seed, but all of them lie in the plane.
    """

    plane: Tensor
    """[r, d] an orthonormal basis of the plane"""
    in_plane: Tensor
    """[m] bool which features lie in it; the others are orthogonal to it"""

    @classmethod
    def create(
        cls,
        *,
        d: int = 128,
        stable: int = 128,
        stable_rate: float = 0.03,
        rank: int = 32,
        rare: int = 1024,
        rare_rate: float = 0.001,
        seed: int = 0,
    ) -> "LowRankWorld":
        """Draw a world.

        Args:
            d: width.
            stable: how many features there are outside of the plane.
            stable_rate: on which share of rows each of them fires.
            rank: dimensions of the plane. In less than 32, directions drawn at random are close to
                each other, and look reproduced.
            rare: how many features there are inside it.
            rare_rate: on which share of rows each of them fires.
            seed: of the directions, and of the rows.
        """
        for name, value in (("d", d), ("stable", stable), ("rank", rank), ("rare", rare)):
            checks.whole(name, value, 1)
        checks.between("rank", rank, 1, d - 1, "below the width")
        generator = world_generator(seed)
        drawn = torch.randn(d, d, generator=generator, dtype=torch.float64)
        with one_thread():
            basis = torch.linalg.qr(drawn).Q.T.float()
            plane, rest = basis[:rank], basis[rank:]
            outside = unit_directions(stable, d - rank, generator) @ rest
            inside = unit_directions(rare, rank, generator) @ plane
        in_plane = torch.arange(stable + rare) >= stable
        rates = torch.full((1, stable + rare), stable_rate, dtype=torch.float64)
        rates[:, in_plane] = rare_rate
        return cls(torch.cat([outside, inside]), rates, seed=seed, plane=plane, in_plane=in_plane)
