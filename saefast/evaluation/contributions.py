"""Agreement between seeds in the contributions of groups of features to each token."""

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
from saefast.evaluation.contribution_sums import ContributionSums
from saefast.linalg import side_by_side
from saefast.nulls.draws import mass_matched, size_matched
from saefast.nulls.permutations import NullTest, beside
from saefast.ops.sparse_decode import sparse_decode
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, Scored, feature_groups
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class PairContribution:
    """Contributions of one group of features to the reconstructions of two seeds, a and b.

    The contribution of a group to a token is the sum of its decoder rows, weighted by the code.
    """

    group: str
    a: int
    b: int
    r2_ab: float
    """share of the variance of a's contribution that b's explains without rescaling: 1 - (sum of
    their squared differences) / (sum of squared distances of a's to its mean); negative if the
    mean predicts better"""
    r2_ba: float
    r2: float
    """the same where b's may be scaled and shifted: their squared correlation, in [0, 1]"""
    token_r2: float
    """squared cosine between the two contributions to a token, mean over tokens to which both
    contribute"""
    both: float
    """share of tokens to which both contribute"""
    histogram: Tensor
    """[20] int64: number of tokens by their squared cosine, in steps of 0.05"""
    tests: tuple[NullTest, ...]
    """tests of `r2_ab`, `r2_ba`, `r2` and `token_r2` against random features"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Contributions of groups of features to rows, compared between seeds."""

    rows: int
    """number of rows read"""
    pairs: tuple[PairContribution, ...]
    """results by group, then seeds; only pairs in which both contributions vary"""
    skipped: tuple[str, ...]
    """sentences on the pairs left out, with reasons"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each pair; columns such as `r2_p` describe the null."""
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
    """Compare the contributions of groups of features to the same tokens between seeds.

    Codes are computed by the whole encoder; only the sum of decoder rows is restricted to the
    group. One pass over the tokens, in constant memory; the same bits for any number of threads.

    Args:
        saes: SAEs of different seeds, on any device.
        activations: any source that `train_saes` accepts: a tensor [n, d], a path, a store.
        stability: result of `score_stability` for them; adds the groups "stable" and "unstable".
        groups: further groups, for each SAE {name: [m] bool}.
        stable: minimum stability score of a stable feature.
        unstable: maximum stability score of an unstable feature.
        mass: for each SAE its `FeatureStatistics.mass`, [m]. If given, random groups have the
            activation mass of the group that they are compared with; otherwise they have as many
            features. A few very active features contribute more than as many others, so pass it
            where it is known.
        rows: number of rows to read; None: all, once.
        batch_size: number of rows per batch.
        draws: number of random groups of alive features for each group.
        band: share of the draws between `low` and `high`.
        seed: seed of the draws and of the order of the rows.
        progress: show a progress bar on stderr.

    Returns:
        Contributions for each group and pair of seeds.
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
    sums = [ContributionSums.zero(len(saes), saes[0].d_out) for _ in variants]
    decoders = [sae.W_dec.detach().cpu() for sae in saes]
    width = batch_size * saes[0].d_out
    with torch.no_grad(), side_by_side(width * 12 * len(saes)) as run:
        for part in one_pass:
            codes = [_weights_of_rows(sae, part.x) for sae in saes]

            def add(i: int, codes: list[SparseCode] = codes) -> None:
                each = zip(codes, decoders, variants[i].masks, strict=True)
                sums[i].add([_contribution(code, weight, mask) for code, weight, mask in each])

            for _ in run(add, range(len(variants))):
                pass
    return _summarise(variants, sums, rows, band, "subset" if mass is None else "mass")


class _Variant(NamedTuple):
    """A group, or random features to compare it with."""

    group: str
    draw: int | None
    """None for the group itself"""
    masks: list[Tensor]
    """[m] bool for each SAE"""


def _weights_of_rows(sae: SAE, x: Tensor) -> SparseCode:
    """Return the weights of decoder rows in the reconstructions of x, on the CPU."""
    x = x.to(sae.W_dec)
    values, indices = sae.contributions(sae.encode(x), x)
    return SparseCode(values.cpu(), indices.cpu())


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
    variants: list[_Variant], sums: list[ContributionSums], rows: int, band: float, null: str
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
        skipped += [
            f"group {group!r} in sae {s}: its contribution is constant" for s in sorted(still)
        ]
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
                f"saes must have equal d_out, but saes[{s}] has d_out {sae.d_out}, not "
                f"{saes[0].d_out}"
            )
    checks.whole("draws", draws)
    checks.at_least("draws", draws, 0)
    checks.at_least("band", band, 0, below=1)
    return [as_dictionary(sae, f"saes[{s}]") for s, sae in enumerate(saes)]
