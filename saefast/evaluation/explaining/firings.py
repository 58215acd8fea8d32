"""Firings of latents on rows, as sparse lists by latent."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from saefast.activations.one_pass import OnePass
from saefast.activations.protocol import ActivationSource
from saefast.evaluation.explaining.contexts import Integers
from saefast.sae import SAE, as_saes, code_of
from saefast.types import brief

MOST_ACTIVE = 128
"""Maximum number of latents that count as firing on a row"""

_SCRAMBLING = 0x5C2A  # separates these random numbers from other uses of a seed


@dataclass(frozen=True, kw_only=True)
class Firings:
    """Firings of one SAE's latents, sorted by latent, then by row."""

    m: int
    """number of latents"""
    rows: int
    """number of encoded rows"""
    starts: Integers
    """[m + 1] start of each latent's firings, then the number of firings"""
    row: NDArray[np.int32]
    """[firings] row of each firing"""
    value: NDArray[np.float32]
    """[firings] absolute activation of each firing"""

    __repr__ = brief

    @cached_property
    def latent(self) -> NDArray[np.int32]:
        """Latent of each firing, [firings]."""
        return np.repeat(np.arange(self.m, dtype=np.int32), self.fired)

    @property
    def fired(self) -> Integers:
        """Number of rows on which each latent fires, [m]."""
        return np.diff(self.starts)

    def of(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the rows on which a latent fires, ascending, and its activations there."""
        part = slice(int(self.starts[latent]), int(self.starts[latent + 1]))
        return self.row[part], self.value[part]

    def chosen(self, latents: Integers) -> "Firings":
        """Return the firings of given latents, renumbered as 0, 1, ..."""
        counts = self.fired[latents]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(self.starts[latents], counts) + within
        return Firings(
            m=len(latents),
            rows=self.rows,
            starts=np.concatenate([[0], np.cumsum(counts)]),
            row=self.row[places],
            value=self.value[places],
        )

    def scrambled(self, context_starts: Integers, seed: int, copies: int = 1) -> "Firings":
        """Move the firings of each latent to random rows of their contexts.

        The relation of a latent to a text as a whole and its firing rate are preserved; its
        relation to single tokens is destroyed.

        Args:
            context_starts: [contexts + 1] `TokenText.context_starts`.
            seed: seed of the random rows.
            copies: number of scrambled copies of all latents, concatenated.

        Returns:
            Firings of `copies` times as many latents.
        """
        generator = np.random.default_rng([_SCRAMBLING, seed])
        every = np.arange(self.m * copies, dtype=np.int64)
        latent = np.repeat(every, np.tile(self.fired, copies))
        context = np.tile(np.searchsorted(context_starts, self.row, side="right") - 1, copies)
        group = latent * (len(context_starts) - 1) + context
        # Firings of one latent in one context are contiguous; `start` is where each group begins.
        start = np.flatnonzero(np.diff(group, prepend=-1))
        count = np.diff(start, append=len(group))
        first = context_starts[context[start]]
        length = context_starts[context[start] + 1] - first
        key = np.empty(len(group), dtype=np.int64)
        dense = count * 2 > length
        for chosen, draw in ((dense, _shuffled), (~dense, _rejected)):
            its_rows = draw(count[chosen], length[chosen], generator)
            its_rows += np.repeat(first[chosen], count[chosen])
            places = np.repeat(chosen, count)
            key[places] = latent[places] * self.rows + its_rows
        order = np.argsort(key, kind="stable")
        return Firings(
            m=len(every),
            rows=self.rows,
            starts=np.searchsorted(latent, np.append(every, len(every))),
            row=(key[order] % self.rows).astype(np.int32),
            value=np.tile(self.value, copies)[order],
        )


@torch.no_grad()
def firings(
    saes: SAE | Sequence[SAE],
    activations: ActivationSource,
    *,
    rows: int | None = None,
    most: int = MOST_ACTIVE,
    batch_size: int = 4096,
    progress: bool = True,
) -> list[Firings]:
    """Encode rows once and list the firings of each SAE's latents.

    Args:
        saes: SAEs on any device; all are encoded in one pass.
        activations: any source that `saefast.activations.open_activations` accepts.
        rows: number of rows to encode, from the first; None: all.
        most: maximum number of latents that count as firing on a row, those with the largest
            activations. Dense codes, such as coordinates of the residual stream, have more.
        batch_size: number of rows encoded at once.
        progress: show a progress bar on stderr.

    Returns:
        One result for each SAE, in their order.
    """
    one_pass = OnePass(
        activations, batch_size=batch_size, rows=rows, what="encoding", progress=progress
    )
    saes = as_saes(saes, one_pass.source.d)
    parts: list[list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]]
    parts = [[] for _ in saes]
    for part in one_pass:
        numbers = part.numbers.to(torch.int32)
        for sae, its in zip(saes, parts, strict=True):
            code = code_of(sae, part.x)
            values, indices = code.values.float().cpu().abs(), code.indices.cpu()
            if values.shape[1] > most:  # the values of a gated SAE are not in descending order
                values, order = values.sort(dim=1, descending=True, stable=True)
                values, indices = values[:, :most], indices.gather(1, order[:, :most])
            active = values > 0
            indices = indices[active].to(torch.int32)
            row = numbers[active.nonzero()[:, 0]]
            its.append((indices.numpy(), row.numpy(), values[active].numpy()))
    return [_by_latent(sae.m, one_pass.rows, its) for sae, its in zip(saes, parts, strict=True)]


def _by_latent(
    m: int,
    rows: int,
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]],
) -> Firings:
    latent, row, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(latent, kind="stable")  # rows are already ascending
    starts = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=m))])
    return Firings(m=m, rows=rows, starts=starts, row=row[order], value=value[order])


def _shuffled(count: Integers, length: Integers, generator: np.random.Generator) -> Integers:
    """Draw `count` of `length` places for each group by shuffling all places."""
    group = np.repeat(np.arange(len(length)), length)
    begins = np.cumsum(length) - length
    order = np.lexsort((generator.random(len(group)), group))
    rank = np.arange(len(group)) - begins[group]
    places: Integers = (order - begins[group])[rank < count[group]]
    return places


def _rejected(count: Integers, length: Integers, generator: np.random.Generator) -> Integers:
    """Draw `count` of `length` places, at most half, for each group; repeats are drawn again."""
    group = np.repeat(np.arange(len(count)), count)
    base = (np.cumsum(length) - length)[group]
    span = length[group]
    key = base + (generator.random(len(group)) * span).astype(np.int64)
    while True:
        key.sort()  # sorting keeps the keys of a group at the places of the group
        again = np.flatnonzero(np.diff(key, prepend=-1) == 0)
        if len(again) == 0:
            return key - base
        key[again] = base[again] + (generator.random(len(again)) * span[again]).astype(np.int64)
