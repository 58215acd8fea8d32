"""Whether groups of features do the same in different seeds: what they add to each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.activations import open_activations
from saefast.activations.one_pass import OnePass, count_rows
from saefast.activations.protocol import ActivationSource
from saefast.dictionary import Dictionary, as_dictionary
from saefast.disk.tables import table_of
from saefast.linalg import side_by_side
from saefast.nulls.draws import mass_matched, size_matched
from saefast.nulls.permutations import NullTest, beside
from saefast.ops.sparse_decode import sparse_decode
from saefast.sae import SAE, as_saes, code_of
from saefast.stability.groups import Groups, Scored, feature_groups
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa

BINS = 20


@dataclass(frozen=True, kw_only=True)
class PairContribution:
    """What one group of features adds to the reconstructions of two seeds, a and b.

    The contribution of a group to a token is the sum of its active decoder rows, weighted.
    """

    group: str
    a: int
    b: int
    r2_ab: float
    """how much of the variance of a's contribution b's explains as it stands: 1 - the sum of their
    squared differences / that of a's distances to its mean; negative if the mean is better"""
    r2_ba: float
    r2: float
    """the same if b's may be scaled and shifted: their squared correlation, in [0, 1]"""
    token_r2: float
    """the squared cosine between the two contributions to a token, mean over tokens that get
    something from both: the same for each token by itself"""
    both: float
    """the share of those tokens"""
    histogram: Tensor
    """[20] int64: the tokens by their squared cosine, in steps of 0.05"""
    tests: tuple[NullTest, ...]
    """`r2_ab`, `r2_ba`, `r2` and `token_r2` beside those of random features"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Contributions of groups of features to rows, compared between seeds."""

    rows: int
    """how many were read"""
    pairs: tuple[PairContribution, ...]
    """by group, then seeds; only those in which both add something that varies"""
    skipped: tuple[str, ...]
    """what could not be computed, and why"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each pair; columns such as `r2_p` are of the null."""
        rows = []
        for pair in self.pairs:
            row = vars(pair) | {"histogram": pair.histogram.tolist()}
            for test in row.pop("tests"):
                row |= {f"{test.statistic}_null": test.mean, f"{test.statistic}_p": test.p}
            rows.append(row)
        return table_of(rows)


def contribution_r2(
    saes: Sequence[SAE],
    activations: ActivationSource,
    stability: Scored | None = None,
    *,
    groups: Groups | None = None,
    stable: float = 0.8,
    unstable: float = 0.2,
    mass: Sequence[Tensor] | None = None,
    rows: int | None = None,
    batch_size: int = 4096,
    draws: int = 20,
    band: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Contributions:
    """Compare what groups of features add to the reconstruction of the same tokens in each seed.

    Codes are those of the whole encoder; only the sum of decoder rows is restricted to the group.
    One pass over the tokens, in constant memory; the same bits for any number of threads.

    Args:
        saes: of different seeds, on any device.
        activations: what `train_saes` takes: a tensor [n, d], a path, a store.
        stability: what `score_stability` found for them: groups "stable" and "unstable".
        groups: more groups: for each SAE {name: [m] bool}.
        stable: the least score of a stable feature.
        unstable: the largest score of an unstable one.
        mass: for each SAE [m], `FeatureStatistics.mass`. With it random groups are as active in sum
            as the group they stand beside; without it they have as many features. A few features
            that are active do more than as many others, so prefer it.
        rows: how many to read; None for all, once.
        batch_size: how many at a time.
        draws: how many random groups, of features alive, each group is set beside.
        band: which share of the draws lies between `low` and `high`.
        seed: of the draws and of the order of the rows.
        progress: show a progress bar on stderr.

    Returns:
        `Contributions`, for each group and two seeds.
    """
    source = open_activations(activations)
    saes = as_saes(saes, source.d, 2)
    known = _check(saes, draws, band)
    masks = feature_groups([each.m for each in known], stability, groups, stable, unstable)
    rows = count_rows(source, rows, 2)
    one_pass = OnePass(
        source,
        batch_size=batch_size,
        rows=rows,
        seed=seed,
        what="contributions",
        progress=progress,
    )
    alive = [dictionary.alive.cpu() for dictionary in known]
    if stability is not None:
        alive = [one & other.cpu() for one, other in zip(alive, stability.alive, strict=True)]
    weights = None if mass is None else _weights(mass, saes)
    variants = _variants(masks, alive, weights, draws, seed)
    sums = [_Sums.zero(len(saes), saes[0].d_out) for _ in variants]
    decoders = [sae.W_dec.detach().cpu() for sae in saes]
    width = batch_size * saes[0].d_out
    with torch.no_grad(), side_by_side(width * 12 * len(saes)) as run:
        for part in one_pass:
            codes = [SparseCode(*(its.cpu() for its in code_of(sae, part.x))) for sae in saes]

            def add(i: int, codes: list[SparseCode] = codes) -> None:
                each = zip(codes, decoders, variants[i].masks, strict=True)
                sums[i].add([_contribution(code, weight, mask) for code, weight, mask in each])

            for _ in run(add, range(len(variants))):
                pass
    return _summarise(variants, sums, rows, band, "subset" if mass is None else "mass")


class _Variant(NamedTuple):
    """A group, or random features beside it."""

    group: str
    draw: int | None
    """None for the group itself"""
    masks: list[Tensor]
    """[m] bool for each SAE"""


class _Sums(NamedTuple):
    """What is summed up over tokens, of one variant; everything else follows from it."""

    dots: Tensor
    """[s, s] of the contributions of two SAEs to a token"""
    total: Tensor
    """[s, d] of the contributions"""
    tokens: Tensor
    """[s, s] that get something from both"""
    cosines: Tensor
    """[s, s] of squared cosines"""
    histogram: Tensor
    """[s, s, 20] of squared cosines"""

    @classmethod
    def zero(cls, saes: int, d: int) -> "_Sums":
        """Nothing yet."""
        shapes = ((saes, saes), (saes, d), (saes, saes), (saes, saes), (saes, saes, BINS))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, contributions: Sequence[Tensor]) -> None:
        """A batch, [n, d] for each SAE; on one thread, so that sums have one order."""
        squares = [(each * each).sum(1) for each in contributions]
        for a, one in enumerate(contributions):
            self.total[a] += one.sum(0)
            self.dots[a, a] += squares[a].sum()
            for b in range(a + 1, len(contributions)):
                dots = (one * contributions[b]).sum(1)
                self.dots[a, b] += dots.sum()
                both = (squares[a] > 0) & (squares[b] > 0)
                cosine = dots[both] / squares[a][both].sqrt() / squares[b][both].sqrt()
                cosine = cosine.square().clamp(max=1)
                self.tokens[a, b] += len(cosine)
                self.cosines[a, b] += cosine.sum()
                place = (cosine * BINS).long().clamp(max=BINS - 1)
                self.histogram[a, b] += place.bincount(minlength=BINS)

    def variance(self, a: int, rows: int) -> float:
        """The sum of the squared distances of a's contributions to their mean."""
        mean = self.total[a].square().sum() / rows
        spread = float(self.dots[a, a] - mean)
        # What is left of a constant is rounding.
        return spread if spread > 1e-12 * float(self.dots[a, a]) else 0.0

    def explained(self, a: int, b: int, rows: int) -> dict[str, float]:
        """The four numbers of two SAEs that both have some variance."""
        variances = self.variance(a, rows), self.variance(b, rows)
        apart = float(self.dots[a, a] + self.dots[b, b] - 2 * self.dots[a, b])
        together = float(self.dots[a, b] - self.total[a] @ self.total[b] / rows)
        return {
            "r2_ab": 1 - apart / variances[0],
            "r2_ba": 1 - apart / variances[1],
            "r2": min(together * together / (variances[0] * variances[1]), 1.0),
            "token_r2": float(self.cosines[a, b] / self.tokens[a, b].clamp(min=1)),
        }


def _contribution(code: SparseCode, decoder: Tensor, mask: Tensor) -> Tensor:
    values = code.values * mask[code.indices]
    return sparse_decode(values, code.indices, decoder).double()


def _weights(mass: Sequence[Tensor], saes: Sequence[SAE]) -> list[Tensor]:
    if len(mass) != len(saes):
        raise ValueError(f"mass must be given for each of saes, {len(saes)}, got {len(mass)}")
    for s, (its, sae) in enumerate(zip(mass, saes, strict=True)):
        checks.shape(f"mass[{s}]", its, (sae.m,))
    return [its.double().cpu() for its in mass]


def _variants(
    groups: list[dict[str, Tensor]],
    alive: list[Tensor],
    weights: list[Tensor] | None,
    draws: int,
    seed: int,
) -> list[_Variant]:
    match = size_matched if weights is None else mass_matched
    masses = [one.double() for one in alive]
    if weights is not None:
        masses = [weight * one for weight, one in zip(weights, alive, strict=True)]
    variants = []
    for group in groups[0]:
        several = [each[group].cpu() & one for each, one in zip(groups, alive, strict=True)]
        variants.append(_Variant(group, None, several))
        for number in range(draws):
            random = [
                match(mask, known, seed, number * len(several) + s)
                for s, (mask, known) in enumerate(zip(several, masses, strict=True))
            ]
            variants.append(_Variant(group, number, random))
    return variants


def _summarise(
    variants: list[_Variant], sums: list[_Sums], rows: int, band: float, null: str
) -> Contributions:
    pairs, skipped = [], []
    for variant, observed in zip(variants, sums, strict=True):
        if variant.draw is not None:
            continue
        group = variant.group
        drawn = [
            each
            for other, each in zip(variants, sums, strict=True)
            if other.group == group and other.draw is not None
        ]
        count = len(variant.masks)
        still = {s for s in range(count) if not observed.variance(s, rows)}
        skipped += [f"group {group!r} in sae {s}: adds nothing that varies" for s in sorted(still)]
        for a, b in combinations(range(count), 2):
            if still & {a, b}:
                continue
            found = observed.explained(a, b, rows)
            random = [
                each.explained(a, b, rows)
                for each in drawn
                if each.variance(a, rows) and each.variance(b, rows)
            ]
            tests = [
                beside(null, name, value, [each[name] for each in random], band)
                for name, value in found.items()
                if random
            ]
            both = float(observed.tokens[a, b]) / rows
            histogram = observed.histogram[a, b].long()
            pairs.append(
                PairContribution(
                    group=group,
                    a=a,
                    b=b,
                    **found,
                    both=both,
                    histogram=histogram,
                    tests=tuple(tests),
                )
            )
    return Contributions(rows=rows, pairs=tuple(pairs), skipped=tuple(skipped))


def _check(saes: Sequence[SAE], draws: int, band: float) -> list[Dictionary]:
    for s, sae in enumerate(saes):
        if sae.d_out != saes[0].d_out:
            raise ValueError(
                f"saes must reconstruct one width, but saes[{s}] has d_out {sae.d_out}, not "
                f"{saes[0].d_out}"
            )
    checks.whole("draws", draws)
    checks.at_least("draws", draws, 0)
    checks.at_least("band", band, 0, below=1)
    return [as_dictionary(sae, f"saes[{s}]") for s, sae in enumerate(saes)]
