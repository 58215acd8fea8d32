"""Small world with a fixed number of features in every row, for demonstrations and tests."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import checks
from saefast.synthetic.world import unit_directions, world_generator


@dataclass(frozen=True)
class PlantedWorld:
    """Rows that are sparse sums of known unit directions.

    Each row holds `active` different features with strengths from 1 to 2, plus Gaussian noise.
    """

    features: Tensor
    """[count, d] float32, rows of norm one"""
    active: int
    """number of features in each row"""
    noise: float
    """standard deviation of the noise of each coordinate"""
    seed: int
    """seed of the rows"""

    @classmethod
    def create(
        cls, count: int, d: int, *, active: int = 8, noise: float = 0.02, seed: int = 0
    ) -> "PlantedWorld":
        """Draw a world with directions uniform on the sphere.

        Args:
            count: number of features.
            d: width of a row.
            active: number of features in each row.
            noise: standard deviation of the noise of each coordinate.
            seed: seed of the directions and of the rows.

        Returns:
            World with `count` features.
        """
        for name, value in (("count", count), ("d", d), ("active", active)):
            checks.whole(name, value, 1)
        checks.between("active", active, 1, count, "the number of features")
        checks.at_least("noise", noise, 0)
        checks.whole("seed", seed, 0)
        checks.between("seed", seed, 0, 2**31 - 1, "half of the bits of torch's seeds")
        features = unit_directions(count, d, world_generator(seed))
        return cls(features, active, noise, seed)

    def sample(self, n: int, batch: int) -> Tensor:
        """Draw rows; the same batch number gives the same rows.

        Args:
            n: number of rows.
            batch: number of the batch.

        Returns:
            [n, d] float32.
        """
        generator = torch.Generator().manual_seed((self.seed << 32) + batch + 1)
        count, d = self.features.shape
        chosen = torch.rand(n, count, generator=generator).topk(self.active, dim=1).indices
        strengths = 1 + torch.rand(n, self.active, generator=generator)
        rows = torch.einsum("na,nad->nd", strengths, self.features[chosen])
        return rows + self.noise * torch.randn(n, d, generator=generator)

    def best_cosine(self, dictionary: Tensor) -> Tensor:
        """Return the largest cosine of each true feature with a row of a dictionary.

        Args:
            dictionary: [latents, d] directions, of any norm; cosines with rows of zeros are 0.

        Returns:
            [count] cosines.
        """
        norms = dictionary.detach().norm(dim=1, keepdim=True)
        rows = dictionary.detach() / norms.masked_fill(norms == 0, 1)
        cosines: Tensor = self.features @ rows.T
        return cosines.amax(dim=1)
