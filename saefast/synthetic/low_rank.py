"""World with features inside a subspace that seeds recover as a whole but not one by one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import checks
from saefast.linalg import one_thread
from saefast.synthetic.world import World, unit_directions, world_generator


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankWorld(World):
    """Block of frequent features, and many rare ones in a subspace of few dimensions.

    An SAE has fewer latents for the subspace than there are features in it, so latents there are
    mixtures that differ from seed to seed, but all of them lie in the subspace.
    """

    subspace: Tensor
    """[r, d] float32, orthonormal basis of the subspace"""
    in_subspace: Tensor
    """[m] bool, features that lie in the subspace; the others are orthogonal to it"""

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
            d: width of a row.
            stable: number of features orthogonal to the subspace.
            stable_rate: share of rows in which each of them fires.
            rank: dimension of the subspace. Below 32, directions drawn at random are close to each
                other and look reproduced.
            rare: number of features in the subspace.
            rare_rate: share of rows in which each of them fires.
            seed: seed of the directions and of the rows.

        Returns:
            World with `stable` + `rare` features, those in the subspace last.
        """
        for name, value in (("d", d), ("stable", stable), ("rank", rank), ("rare", rare)):
            checks.whole(name, value, 1)
        checks.between("rank", rank, 1, d - 1, "below the width")
        generator = world_generator(seed)
        drawn = torch.randn(d, d, generator=generator, dtype=torch.float64)
        with one_thread():
            basis = torch.linalg.qr(drawn).Q.T.float()
            subspace, rest = basis[:rank], basis[rank:]
            outside = unit_directions(stable, d - rank, generator) @ rest
            inside = unit_directions(rare, rank, generator) @ subspace
        in_subspace = torch.arange(stable + rare) >= stable
        rates = torch.full((1, stable + rare), stable_rate, dtype=torch.float64)
        rates[:, in_subspace] = rare_rate
        return cls(
            torch.cat([outside, inside]),
            rates,
            seed=seed,
            subspace=subspace,
            in_subspace=in_subspace,
        )
