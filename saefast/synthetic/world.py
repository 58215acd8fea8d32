"""Endless rows that are sparse sums of known directions, with the features in each row."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import Batch, check_stream
from saefast.linalg import side_by_side
from saefast.ops.sparse_decode import sparse_decode
from saefast.reference import normalise_rows
from saefast.synthetic.firing import Children, Fired, Firing

BLOCK = 4096
"""Number of rows drawn with one generator; changing it changes the rows of every world."""


class Strength(NamedTuple):
    """Distribution of a feature's strength where it fires.

    It is `|mean + spread * z|` or, if `log`, `mean * exp(spread * z)`, for standard normal z.
    """

    mean: Tensor
    """[m], or [] for all features"""
    spread: Tensor
    """[m], or [] for all features"""
    log: bool
    """whether the strength is log-normal"""


LOG_NORMAL = Strength(torch.tensor(1.0), torch.tensor(0.25), log=True)
"""LogNormal(0, 0.25) of the papers, with the second number read as sigma."""


class Drawn(NamedTuple):
    """Rows and the features that they hold."""

    x: Tensor
    """[n, d]"""
    values: Tensor
    """[n, width], strengths of the features that fire, padded with zeros"""
    indices: Tensor
    """[n, width] int64, indices of these features, in no particular order"""


@dataclass(frozen=True, eq=False)
class World:
    """World with rows x = bias + sum of strength times direction over the features that fire.

    A world is a source of activations that `train_saes` accepts as it is. Its rows are numbered
    without end, one stream for each seed. A row has the same bits in every access and for any
    number of threads, as long as NumPy's generators draw the same numbers (`fingerprint` changes if
    they do not).
    """

    features: Tensor
    """[m, d], rows of norm one"""
    rates: Tensor
    """[contexts, m] float64, share of the rows of a context in which a feature fires

    For a feature with a parent: share of the rows in which the parent fires.
    """
    strength: Strength = LOG_NORMAL
    """distribution of the strength of a feature where it fires"""
    parent: Tensor | None = None
    """[m] int64, parent of each feature, -1 for none

    A feature fires only where its parent does, and never together with a sibling.
    """
    bias: Tensor | None = None
    """[d], added to every row; None: zeros"""
    seed: int = 0
    """seed of the rows"""

    rows = None
    dtype = torch.float32

    def __post_init__(self) -> None:
        checks.floating("features", self.features, "[m, d]")
        checks.floating("rates", self.rates, "[contexts, m]")
        checks.size("rates", self.rates, 1, self.m, "one for each feature")
        if not bool(((self.rates >= 0) & (self.rates < 1)).all()):
            raise ValueError("rates must be at least 0 and below 1")
        checks.whole("seed", self.seed, 0)
        if self.parent is not None:
            _check_parents(self.parent, self.rates)

    @property
    def m(self) -> int:
        """Number of true features."""
        return len(self.features)

    @property
    def d(self) -> int:
        """Width of a row."""
        return self.features.shape[1]

    @cached_property
    def firing_rate(self) -> Tensor:
        """[m] float64, share of all rows in which each feature fires."""
        rate = self.rates.mean(0)
        if self.parent is None:
            return rate
        total, above = rate.clone(), self.parent
        while bool((above >= 0).any()):
            total *= torch.where(above >= 0, rate[above.clamp(min=0)], 1.0)
            above = torch.where(above >= 0, self.parent[above.clamp(min=0)], -1)
        return total

    def sample(self, n: int, *, seed: int = 1, start: int = 0) -> Drawn:
        """Draw rows of a stream, with the features that they hold.

        Args:
            n: number of rows.
            seed: seed of the stream. Training reads the stream `TrainConfig.data_seed`, 0 by
                default.
            start: number of the first row.

        Returns:
            Rows `start` to `start + n` and their features.
        """
        check_stream(n, seed, start)
        first, end = start // BLOCK, -(-(start + n) // BLOCK)
        blocks = [self._block(seed, number) for number in range(first, end)]
        width = max(block.values.shape[1] for block in blocks)
        parts = zip(*(_widened(block, width) for block in blocks), strict=True)
        x, values, indices = (torch.cat(part) for part in parts)
        wanted = slice(start - first * BLOCK, start - first * BLOCK + n)
        return Drawn(x[wanted], values[wanted], indices[wanted])

    def blocks(self, n: int, *, seed: int = 1) -> Iterator[Drawn]:
        """Yield the first n rows of a stream in blocks, the rows of `sample` in bounded memory.

        Args:
            n: number of rows.
            seed: seed of the stream.

        Yields:
            Blocks of `BLOCK` rows, the last one shorter.
        """
        check_stream(n, seed, 0)
        count, at_once = -(-n // BLOCK), 2 * torch.get_num_threads()
        for first in range(0, count, at_once):
            numbers = range(first, min(first + at_once, count))
            with side_by_side() as run:  # left before a yield: the caller may never come back
                group = list(run(partial(self._block, seed), numbers))
            for number, drawn in zip(numbers, group, strict=True):
                left = n - number * BLOCK
                yield drawn if left >= BLOCK else Drawn(*(part[:left] for part in drawn))

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """See `Activations.batches`; each seed has its own rows."""
        check_stream(batch_size, seed, start)
        return self._batches(batch_size, seed, start)

    def locate(self, row: int) -> str:
        """See `Activations.locate`."""
        return f"the synthetic world, row {row}"

    @cached_property
    def fingerprint(self) -> str:
        """See `Activations.fingerprint`: hash of the world's definition and of some of its rows."""
        digest = hashlib.sha256(repr((self.seed, self.strength.log)).encode())
        parts = [self.features, self.rates, *self.strength[:2], self.parent, self.bias]
        parts.append(self.sample(64, seed=0).x)
        for part in parts:
            digest.update(b"none" if part is None else part.numpy().tobytes())
        return f"world-{digest.hexdigest()[:16]}"

    def _batches(self, batch_size: int, seed: int, start: int) -> Iterator[Batch]:
        block: tuple[int, Tensor] | None = None
        for number in itertools.count(start):
            first, end = number * batch_size, (number + 1) * batch_size
            parts = []
            for which in range(first // BLOCK, -(-end // BLOCK)):
                if block is None or block[0] != which:
                    block = which, self._block(seed, which).x
                parts.append(block[1][max(first - which * BLOCK, 0) : end - which * BLOCK])
            yield Batch(
                x=parts[0] if len(parts) == 1 else torch.cat(parts),
                target=None,
                where=f"the synthetic world, rows {first} to {end - 1}",
                rows=np.arange(first, end),
            )

    def _block(self, seed: int, number: int) -> Drawn:
        """Return the rows from number * BLOCK on; their bits depend on nothing else."""
        sequence = np.random.SeedSequence([self.seed, seed, number])
        generator = np.random.Generator(np.random.SFC64(sequence))
        fired = self._firing.draw(generator, BLOCK)
        if self._children is not None:
            fired = self._children.join(generator, fired)
        values, indices = _padded(fired, self._strengths(generator, fired.feature))
        return Drawn(sparse_decode(values, indices, self.features, self.bias), values, indices)

    def _strengths(self, generator: np.random.Generator, feature: NDArray[np.int64]) -> Tensor:
        drawn = torch.from_numpy(generator.standard_normal(len(feature), np.float32))
        mean, spread = (
            part.float() if part.ndim == 0 else part.float()[torch.from_numpy(feature)]
            for part in self.strength[:2]
        )
        drawn *= spread
        return mean * drawn.exp() if self.strength.log else (mean + drawn).abs()

    @cached_property
    def _firing(self) -> Firing:
        rates = self.rates if self.parent is None else self.rates * (self.parent < 0)
        return Firing(rates.double().numpy())

    @cached_property
    def _children(self) -> Children | None:
        if self.parent is None or bool((self.parent < 0).all()):
            return None
        return Children(self.parent.numpy(), self.rates[0].double().numpy())


def world_generator(seed: int) -> torch.Generator:
    """Return the generator of a world's directions and rates.

    SAEs draw their first directions from the plain seed: a world that did so, too, would initialise
    an SAE of the same seed with the truth.
    """
    checks.whole("seed", seed, 0)
    drawn = np.random.SeedSequence([seed, int.from_bytes(b"world")]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(drawn[0] >> 1))


def unit_directions(count: int, d: int, generator: torch.Generator) -> Tensor:
    """Return [count, d] float32, rows uniform on the unit sphere."""
    drawn = torch.randn(count, d, generator=generator)
    normalise_rows(drawn)
    return drawn


def _padded(fired: Fired, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and indices [BLOCK, width], padded with zeros."""
    count = np.bincount(fired.row, minlength=BLOCK)
    first = np.cumsum(count) - count
    width = max(int(count.max()), 1)
    place = np.arange(len(fired.row)) + (np.arange(BLOCK) * width - first)[fired.row]
    at = torch.from_numpy(place)
    values = torch.zeros(BLOCK * width).index_copy_(0, at, strengths)
    indices = torch.zeros(BLOCK * width, dtype=torch.int64)
    indices.index_copy_(0, at, torch.from_numpy(fired.feature))
    return values.view(BLOCK, width), indices.view(BLOCK, width)


def _widened(drawn: Drawn, width: int) -> Drawn:
    missing = (0, width - drawn.values.shape[1])
    values, indices = (torch.nn.functional.pad(part, missing) for part in drawn[1:])
    return Drawn(drawn.x, values, indices)


def _check_parents(parent: Tensor, rates: Tensor) -> None:
    checks.indices("parent", parent, "[m]")
    checks.size("parent", parent, 0, rates.shape[1], "one for each feature")
    order = torch.arange(len(parent))
    if not bool(((parent >= -1) & (parent < order)).all()):
        raise ValueError("parent must be -1 or the number of an earlier feature")
    child = parent >= 0
    if not bool((rates[:, child] == rates[0, child]).all()):
        raise ValueError("rates of a feature with a parent must be equal in all contexts")
    taken = torch.zeros(len(parent), dtype=torch.float64)
    taken.index_add_(0, parent[child], rates[0, child].double())
    if bool((taken > 1 + 1e-12).any()):
        crowded = int(taken.argmax())
        raise ValueError(
            f"rates of the children of feature {crowded} must sum to at most 1, since they exclude "
            f"each other, but sum to {float(taken[crowded]):g}"
        )
