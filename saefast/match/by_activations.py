"""Matching of the features of SAEs by the correlation of their activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.activations.one_pass import OnePass, count_rows
from saefast.activations.opening import open_activations
from saefast.activations.protocol import ActivationSource
from saefast.match.result import Matches
from saefast.progress import tracked
from saefast.sae import SAE, as_saes, code_of
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 4096
_CELLS = 1 << 23  # sums held at once, 8 bytes each
_PAIRS = 1 << 22  # pairs of latents active on one row in a block, about 60 bytes each
_LEAST_VARIANCE = 1e-12  # relative to the mean square; features of less variance are constant

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ActivationMatches:
    """Matches by activations, for the arguments `matches` and `alive` of `score_stability`."""

    matches: dict[tuple[int, int], Matches]
    """matches by pair: [s, t] holds the partners of the features of SAE s in SAE t; the similarity
    is the correlation"""
    alive: tuple[Tensor, ...]
    """[m] bool for each SAE, features that fired often enough to be matched and are not constant"""
    firing_rate: tuple[Tensor, ...]
    """[m] float32 for each SAE, share of the rows on which each feature fired"""
    rows: int
    """number of rows"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a pyarrow table with a row for each SAE and feature."""
        import pyarrow as pa

        sizes = [len(alive) for alive in self.alive]
        return pa.table(
            {
                "sae": np.repeat(np.arange(len(sizes)), sizes),
                "feature": np.concatenate([np.arange(size) for size in sizes]),
                "alive": torch.cat(self.alive).numpy(),
                "firing_rate": torch.cat(self.firing_rate).numpy(),
            }
        )


def activation_matches(
    saes: Sequence[SAE],
    activations: ActivationSource,
    *,
    rows: int = 100_000,
    least_fires: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> ActivationMatches:
    """Match the features of every two SAEs by the correlation of their activations.

    The partner of a feature is the feature of the other SAE whose activations, zeros included and
    in absolute value, correlate most with its own over the same rows; a feature without a positive
    correlation has no partner. Codes remain sparse: the work is rows * k * k for each pair of SAEs.
    Memory is 20 bytes for each active latent of each row and SAE, plus half a gigabyte, or, if a
    feature is active on most rows, 60 bytes for each latent of the other SAE that is active on
    these.

    Args:
        saes: two or more SAEs of the same activations.
        activations: a tensor or array [n, d], a path or a source, as for `train_saes`.
        rows: maximum number of rows to use; they are drawn without repetition.
        least_fires: features that fire on fewer rows are not matched and count as dead: two
            features that fired once, together, would correlate perfectly.
        seed: seed of the drawn rows.
        progress: whether to show progress bars on stderr.

    Returns:
        The matches of all pairs of SAEs, with the alive features and firing rates of each SAE.
    """
    for name, value in (("rows", rows), ("least_fires", least_fires)):
        checks.whole(name, value, 1)
    source = open_activations(activations)
    saes = as_saes(saes, source.d, 2)
    rows = count_rows(source, rows, 1)
    one_pass = OnePass(
        source, batch_size=_BATCH, rows=rows, seed=seed, what="encoding", progress=progress
    )
    codes = _encode(saes, one_pass)
    alive = [code.scale(rows, least_fires) for code in codes]
    matches: dict[tuple[int, int], Matches] = {}
    pairs = list(combinations(range(len(saes)), 2))
    for s, t in tracked(pairs, "correlating", unit="pairs", progress=progress):
        forward, backward = _Correlating(codes[s], codes[t], rows).best()
        for (one, here), (other, there) in (
            ((forward, s), (backward, t)),
            ((backward, t), (forward, s)),
        ):
            returned = (one.partner >= 0) & (
                other.partner[one.partner.clip(0)] == np.arange(len(one.partner))
            )
            matches[here, there] = Matches(
                partner=torch.from_numpy(one.partner),
                similarity=torch.from_numpy(one.value.astype(np.float32)),
                mutual=torch.from_numpy(returned),
            )
    rates = [torch.from_numpy((code.fires / rows).astype(np.float32)) for code in codes]
    return ActivationMatches(
        matches=matches,
        alive=tuple(map(torch.from_numpy, alive)),
        firing_rate=tuple(rates),
        rows=rows,
    )


class _Codes:
    """Sparse codes of all rows, indexed by row (token) and by feature."""

    def __init__(self, token: Ints, feature: Ints, value: NDArray[np.float32], m: int) -> None:
        """Store active latents, in ascending order of their tokens."""
        self.m = m
        self.token, self.feature, self.value = token, feature, value
        self.fires = np.bincount(feature, minlength=m)
        self.by_feature = np.argsort(feature, kind="stable")
        self.feature_start = np.concatenate([[0], np.cumsum(self.fires)])
        self.mean = np.zeros(m)
        self.deviation = np.full(m, np.inf)

    def scale(self, tokens: int, least_fires: int) -> NDArray[np.bool_]:
        """Compute means and deviations over all tokens; return a mask of features to match."""
        wide = self.value.astype(np.float64)
        self.mean = np.bincount(self.feature, wide, self.m) / tokens
        square = np.bincount(self.feature, wide * wide, self.m) / tokens
        variance = square - self.mean**2
        alive = (self.fires >= least_fires) & (variance > _LEAST_VARIANCE * square)
        # An infinite deviation makes all correlations of features outside the mask 0.
        self.deviation = np.sqrt(variance, where=alive, out=np.full(self.m, np.inf))
        return alive


class _Best:
    """Partner with the largest correlation so far, for each feature of one SAE."""

    def __init__(self, m: int) -> None:
        self.value = np.zeros(m)
        self.partner = np.full(m, -1)

    def offer(self, feature: Ints, other: Ints, value: Floats) -> None:
        """Update the partners from pairs; ties keep the earlier partner, then the lowest index."""
        before = self.value[feature]
        better = value > before
        feature, other, value = feature[better], other[better], value[better]
        np.maximum.at(self.value, feature, value)
        highest = value == self.value[feature]
        feature, other = feature[highest], other[highest]
        self.partner[feature] = np.iinfo(np.int64).max
        np.minimum.at(self.partner, feature, other)


class _Correlating:
    """Correlations between the codes of two SAEs on the same tokens."""

    def __init__(self, first: _Codes, second: _Codes, tokens: int) -> None:
        self.first, self.second, self.tokens = first, second, tokens
        self.token_start = np.searchsorted(second.token, np.arange(tokens + 1))
        # Number of pairs that each feature of the first SAE is in.
        beside = np.diff(self.token_start)[first.token]
        self.pairs = np.bincount(first.feature, beside, first.m).astype(np.int64)

    def best(self) -> tuple[_Best, _Best]:
        """Find the partners of the features of the first SAE, and of those of the second."""
        forward, backward = _Best(self.first.m), _Best(self.second.m)
        most_rows = max(_CELLS // max(self.second.m, 1), 1)
        sums = np.zeros(most_rows * self.second.m)
        ends = np.cumsum(self.pairs)
        low = 0
        while low < self.first.m:
            so_far = ends[low - 1] if low else 0
            high = int(np.searchsorted(ends, so_far + _PAIRS, "right"))
            high = min(max(high, low + 1), low + most_rows, self.first.m)
            self._block(low, high, sums, forward, backward)
            low = high
        return forward, backward

    def _block(self, low: int, high: int, sums: Floats, forward: _Best, backward: _Best) -> None:
        """Offer all pairs with features `low` to `high` of the first; `sums` is reset to zeros."""
        first, second = self.first, self.second
        entries = first.by_feature[first.feature_start[low] : first.feature_start[high]]
        token = first.token[entries]
        start = self.token_start[token]
        count = self.token_start[token + 1] - start
        # For each entry, all latents of the second SAE that are active on its token.
        skipped = np.cumsum(count) - count
        beside = np.repeat(start - skipped, count) + np.arange(count.sum())
        row = np.repeat(first.feature[entries], count)
        column = second.feature[beside]
        product = np.repeat(first.value[entries].astype(np.float64), count) * second.value[beside]
        cell = (row - low) * second.m + column
        np.add.at(sums, cell, product)
        # Pairs occur once for each common token; the maximum is not affected by repetitions.
        covariance = sums[cell] / self.tokens - first.mean[row] * second.mean[column]
        sums[cell] = 0
        value = np.minimum(covariance / (first.deviation[row] * second.deviation[column]), 1)
        forward.offer(row, column, value)
        backward.offer(column, row, value)


def _encode(saes: Sequence[SAE], one_pass: OnePass) -> list[_Codes]:
    """Collect the active latents of each SAE on the rows of a pass."""
    parts: list[list[tuple[Ints, Ints, NDArray[np.float32]]]] = [[] for _ in saes]
    seen = 0
    for rows in one_pass:
        for sae, part in zip(saes, parts, strict=True):
            with torch.no_grad():
                code = code_of(sae, rows.x)
            # The direction in which a latent of abstopk fires is arbitrary. Besides, features that
            # never fire together could correlate if activations had both signs.
            values, indices = code.values.cpu().abs(), code.indices.cpu()
            row, place = (values > 0).nonzero(as_tuple=True)
            part.append(
                (
                    (row.numpy() + seen).astype(np.int32),
                    indices[row, place].numpy().astype(np.int32),
                    values[row, place].float().numpy(),
                )
            )
        seen += len(rows.x)
    codes = []
    for sae, part in zip(saes, parts, strict=True):
        token, feature, value = (np.concatenate(column) for column in zip(*part, strict=True))
        codes.append(_Codes(token, feature, value, sae.m))
    return codes
