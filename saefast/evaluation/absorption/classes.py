"""Absorption in one SAE, over the words of all classes that probes identify."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast.activations.order import permutation
from saefast.evaluation.absorption.class_probes import (
    RowProbes,
    columns_of,
    f1,
    fit_code_probes,
    fit_columns,
    fit_row_probes,
    members,
    predicted,
)
from saefast.evaluation.absorption.words import AbsorbedWords, absorbed_words
from saefast.sae import SAE
from saefast.types import SparseCode

LEAST_F1 = 0.6
"""F1 score of a probe above which its class counts as identified"""
LEAST_RISE = 0.03
"""Rise of the F1 score above which one more latent becomes a main latent"""
MOST_MAIN = 10
"""Maximum number of main latents of a class"""
_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class Split:
    """Training and held-out words, with probes on their activations."""

    rows: Tensor
    """[n, d] activations of the words"""
    positive: Tensor
    """[n, classes] bool, one-hot classes"""
    train: Tensor
    """[t] int64 indices of the training rows"""
    test: Tensor
    """[u] int64 indices of the held-out rows"""
    probes: RowProbes
    f1: Tensor
    """[classes] float64 F1 scores of the probes on the held-out words"""
    recognised: Tensor
    """[c] int64 classes that the probes identify"""
    places: tuple[Tensor, ...]
    """for each of those, [w] int64 indices of the held-out words that its probe finds"""
    mean: Tensor
    """[d] mean of the training rows"""
    scale: float
    """factor that scales centred rows to a root mean square length of one"""
    seed: int

    @property
    def words(self) -> int:
        """Number of words on which absorption is measured."""
        return sum(map(len, self.places))


@torch.no_grad()
def split_words(rows: Tensor, labels: Tensor, classes: int, families: Tensor, seed: int) -> Split:
    """Split words by families, and fit a probe for each class.

    Args:
        rows: [n, d] activations of the words.
        labels: [n] int64 class of each word, -1 for none.
        classes: number of classes.
        families: [n] int64 family of each word; words of one family are never split.
        seed: seed of the split.

    Returns:
        Parts of the words, with the probes and their scores.
    """
    _, family = torch.unique(families.to(rows.device), return_inverse=True)
    count = int(family.max()) + 1
    order = torch.from_numpy(permutation(count, seed, 2)).to(rows.device)
    in_train = torch.zeros(count, dtype=torch.bool, device=rows.device)
    in_train[order[: round(_TRAIN_SHARE * count)]] = True
    train, test = (side.nonzero()[:, 0] for side in (in_train[family], ~in_train[family]))
    positive = members(labels, classes)
    # A class without rows on one side cannot be fitted or measured.
    sides = [positive[side].sum(0) for side in (train, test)]
    usable = (sides[0] > 0) & (sides[0] < len(train)) & (sides[1] > 0)
    known = usable.nonzero()[:, 0]
    mean = rows[train].mean(0)
    square = float((rows[train] - mean).square().sum(1).mean())
    weight = rows.new_zeros(classes, rows.shape[1])
    bias = rows.new_full((classes,), -1.0)
    if len(known):
        fitted = fit_row_probes(rows[train], positive[train][:, known])
        weight[known], bias[known] = fitted.weight, fitted.bias
    probes = RowProbes(weight, bias)
    reads = probes.logits(rows[test]) > 0
    scores = f1(reads, positive[test])
    recognised = ((scores > LEAST_F1) & usable).nonzero()[:, 0]
    places = tuple(test[reads[:, c] & positive[test, c]] for c in recognised.tolist())
    return Split(
        rows,
        positive,
        train,
        test,
        probes,
        scores,
        recognised,
        places,
        mean,
        square**-0.5 if square > 0 else 1.0,
        seed,
    )


@dataclass(frozen=True)
class Absorbed:
    """Absorption of one SAE; words are in the order of `Split.places`, class by class."""

    fraction: Tensor
    """[words] float64 fraction absorbed, see `AbsorbedWords`"""
    full: Tensor
    """[words] float64 1 for full absorption, else 0"""
    centred: Tensor
    """[words] float64 fraction with the mean row subtracted from the activations"""
    mismatched: Tensor
    """[words] float64 fraction with the main latents of another class; NaN if there is none"""
    share: tuple[tuple[Tensor, Tensor], ...]
    """for each class the absorbing latents [words, 3], -1 for none, and their parts of `fraction`
    [words, 3]"""
    main: tuple[Tensor, ...]
    """for each class its main latents, int64"""
    main_f1: Tensor
    """[c] float64 F1 scores of the main latents of identified classes"""
    m: int
    """number of latents"""

    def by_latent(self) -> Tensor:
        """Return the number of words that each latent absorbs, parts included, [m] float64."""
        total = torch.zeros(self.m, dtype=torch.float64)
        for latents, share in self.share:
            there = latents >= 0
            total.index_add_(0, latents[there].cpu(), share[there].cpu())
        return total

    def by_group(self, mask: Tensor) -> Tensor:
        """Return the part of `fraction` due to the latents of a mask [m], [words] float64."""
        parts = [
            torch.where((latents >= 0) & mask.to(latents.device)[latents], share, 0.0).sum(1)
            for latents, share in self.share
        ]
        return torch.cat(parts)


@torch.no_grad()
def absorbed_classes(sae: SAE, code: SparseCode, split: Split) -> Absorbed:
    """Choose the main latents of every class and measure absorption on the held-out words.

    The main latents of a class have the largest weights in a probe with an L1 penalty on the codes;
    their number grows as long as the F1 score of a regression on them rises.

    Args:
        sae: SAE to measure.
        code: its code of all rows of the split.
        split: split of the words.

    Returns:
        Main latents and absorption of each class.
    """
    main, main_f1 = _main_latents(sae, code, split)
    measured: list[tuple[AbsorbedWords, AbsorbedWords, AbsorbedWords]] = []
    for place, c in enumerate(split.recognised.tolist()):
        words = split.places[place]
        here = words.to(code.values.device)
        its = SparseCode(code.values[here], code.indices[here])
        common = its, split.rows[words].to(sae.W_dec), sae.W_dec, split.probes.weight[c]
        other = main[(place + 1) % len(main)]
        wrong = other[~torch.isin(other, main[place])]
        measured.append(
            (
                absorbed_words(*common, main[place].tolist()),
                absorbed_words(*common, main[place].tolist(), centre=split.mean),
                absorbed_words(*common, wrong.tolist()),
            )
        )
    plain, centred, mismatched = zip(*measured, strict=True)
    return Absorbed(
        fraction=torch.cat([each.fraction for each in plain]),
        full=torch.cat([each.full.double() for each in plain]),
        centred=torch.cat([each.fraction for each in centred]),
        mismatched=_of_other_classes(mismatched),
        share=tuple((each.absorbers, _shared(each)) for each in plain),
        main=tuple(main),
        main_f1=main_f1,
        m=sae.m,
    )


def _of_other_classes(mismatched: Sequence[AbsorbedWords]) -> Tensor:
    """Return the fractions of all words, [words] float64; NaN where there is only one class."""
    fraction = torch.cat([each.fraction for each in mismatched])
    return fraction if len(mismatched) > 1 else torch.full_like(fraction, torch.nan)


def _shared(words: AbsorbedWords) -> Tensor:
    """Return the fraction of each word divided by its absorbers' contributions, [words, 3]."""
    total = words.contributions.sum(1, keepdim=True)
    parts = words.contributions / total.clamp(min=torch.finfo(torch.float64).tiny)
    return parts * words.fraction[:, None]


def _main_latents(sae: SAE, code: SparseCode, split: Split) -> tuple[list[Tensor], Tensor]:
    """Return the main latents of each class that the probe finds, and their F1 scores."""
    # Values are lengths of the latents' contributions relative to a row's length. They depend
    # neither on the norms of decoder rows (z * c with d / c) nor on the unit of the activations,
    # and the penalty keeps out latents of single words.
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    values = code.values * norms[code.indices] * split.scale
    sized = SparseCode(values, code.indices)
    positive = split.positive[:, split.recognised].to(values.device)
    train, test = split.train.to(values.device), split.test.to(values.device)
    weights = fit_code_probes(
        SparseCode(values[train], code.indices[train]), positive[train], sae.m, split.seed
    )
    best = weights.topk(min(MOST_MAIN, sae.m), dim=0).indices
    latents = torch.unique(best)
    columns = columns_of(sized, latents, sae.m)
    main, scores = [], []
    for place, its in enumerate(best.T):
        at = torch.searchsorted(latents, its.contiguous())
        chosen, score = _grown(columns[:, at], positive[:, place], train, test)
        main.append(its[:chosen])
        scores.append(score)
    return main, torch.tensor(scores, dtype=torch.float64)


def _grown(columns: Tensor, positive: Tensor, train: Tensor, test: Tensor) -> tuple[int, float]:
    """Return the number of leading columns [n, k] that raise the F1 score, and that score."""
    chosen, score = 0, -1.0
    for k in range(1, columns.shape[1] + 1):
        some = columns[:, :k]
        weights = fit_columns(some[train], positive[train])
        now = float(f1(predicted(some[test], weights), positive[test]))
        if not now > score + LEAST_RISE:
            break
        chosen, score = k, now
    return chosen, score
