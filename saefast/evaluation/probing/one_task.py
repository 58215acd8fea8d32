"""Probes of one SAE's pooled latents on one task, with random latents and permuted labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.activations.order import permutation
from saefast.evaluation.intervals import Interval
from saefast.evaluation.probing.logistic import choose_penalty, fit_l2, principal_coordinates
from saefast.evaluation.probing.rules import (
    ProbingRule,
    choice_scores,
    folds_of,
    largest,
    standardised,
)
from saefast.nulls.draws import mass_matched
from saefast.nulls.permutations import generator_of

_WIDE_PENALTIES = torch.logspace(-1, 4, 6, dtype=torch.float64)
_NEAR = 0.05
"""Share of the alive latents above and below in mass that count as equally active"""
_FEWEST_NEAR = 10


class Split(NamedTuple):
    """Examples divided into a training and a test part."""

    labels: Tensor
    """[n] bool"""
    test: Tensor
    """[n] bool"""
    seed: int
    """seed of folds and draws"""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Controls that are probed beside the best latents."""

    draws: int
    """number of random sets of latents, of permutations of the labels, and of mass-matched sets"""
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    """groups of latents, [m] bool"""
    mass: Tensor | None = None
    """[m] activation mass; None: the sum of absolute values over the examples times `norms`"""
    norms: Tensor | None = None
    """[m] norms of decoder rows; None: all one"""
    number: int = 0
    """number of the SAE; gives each SAE its own draws"""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Results of one SAE on one task and split; values are by k."""

    best: Tensor
    """[largest k] int64 chosen latents, best first"""
    choice: Tensor
    """[m] float64 selection scores, positive where a latent is larger in positive examples"""
    value: Mapping[int, float]
    interval: Mapping[int, Interval]
    random: Mapping[int, float]
    """mean over sets of random latents, each about as active as the chosen one in its place"""
    near: Tensor
    """[draws] int64 first latent of each of those sets"""
    permuted: Mapping[int, float]
    """mean over permutations of the training labels"""
    groups: Mapping[str, Mapping[int, float]]
    """value by group, and under "NAME:mass" the mean over mass-matched sets"""
    masks: Mapping[str, Tensor]
    """mask [m] bool of each group"""
    shares: Mapping[str, float]
    """share of the activation mass in each group"""


class _Pick(NamedTuple):
    """Latents to fit a probe on, and the labels to fit it to."""

    kind: str
    latents: Tensor
    """[largest k] int64, -1 for none"""
    labels: Tensor
    """[n] bool"""


@torch.no_grad()
def probe_latents(
    latents: Tensor,
    split: Split,
    rule: ProbingRule,
    ks: Sequence[int],
    controls: Controls | None = None,
) -> Probed:
    """Choose latents on the training part, fit probes, and score them on the test part.

    Args:
        latents: [n, m] pooled latents of the examples.
        split: labels, and the mask of the test part.
        rule: choice of latents, fit of probes, and measure.
        ks: numbers of latents.
        controls: random sets, permutations and groups to probe as well; None: none.

    Returns:
        Values of the chosen latents and of the controls, by k.
    """
    train = ~split.test
    permuted = [] if controls is None else _permutations(split, controls.draws)
    labelings = torch.stack([split.labels, *permuted])
    choice = choice_scores(rule.choice, latents, labelings & train, ~labelings & train)
    most = max(ks)
    best = largest(choice[0], most)
    picks = [_Pick("", best, split.labels)]
    near = torch.zeros(0, dtype=torch.int64)
    shares: dict[str, float] = {}
    if controls is not None:
        live = (latents[train] != 0).any(0)
        activity = latents.double().abs().sum(0)
        if controls.norms is not None:
            activity = activity * controls.norms.double()
        mass = activity if controls.mass is None else controls.mass.double()
        generator = generator_of(split.seed, "random latents", controls.number)
        sets = _random_sets(best, activity, live, generator, controls.draws)
        near = sets[:, 0]
        picks += [_Pick("random", its, split.labels) for its in sets]
        picks += [
            _Pick("permuted", largest(scores, most), labels)
            for scores, labels in zip(choice[1:], permuted, strict=True)
        ]
        for name, mask in controls.groups.items():
            shares[name] = float(mass[mask].sum() / mass.sum().clamp(min=1e-300))
            picks.append(_Pick(name, largest(choice[0], most, mask & live), split.labels))
            for draw in range(controls.draws):
                allowed = mass_matched(mask, mass, split.seed + controls.number, draw) & live
                its = largest(choice[0], most, allowed)
                picks.append(_Pick(f"{name}:mass", its, split.labels))
    values: dict[str, dict[int, float]] = {pick.kind: {} for pick in picks}
    interval = {}
    for k in ks:
        decisions = _decisions(latents, picks, split, rule, k)
        truth = split.labels[split.test]
        found: dict[str, list[float]] = {pick.kind: [] for pick in picks}
        for pick, its in zip(picks, decisions, strict=True):
            known = bool((pick.latents >= 0).any())
            found[pick.kind].append(rule.measure.value(truth, its) if known else np.nan)
        for kind, its_values in found.items():
            values[kind][k] = float(np.mean(its_values))
        interval[k] = rule.measure.interval(truth, decisions[0])
    nothing = dict.fromkeys(ks, np.nan)
    return Probed(
        best=best,
        choice=choice[0],
        value=values.pop(""),
        interval=interval,
        random=values.pop("random", nothing),
        near=near,
        permuted=values.pop("permuted", nothing),
        groups=values,
        masks={} if controls is None else controls.groups,
        shares=shares,
    )


def _decisions(
    latents: Tensor, picks: Sequence[_Pick], split: Split, rule: ProbingRule, k: int
) -> Tensor:
    """Return the decisions [picks, tests] of a probe for each pick."""
    chosen = torch.stack([pick.latents[:k] for pick in picks])
    # Where a group has too few latents, columns of zeros replace the missing ones.
    columns = latents[:, chosen.clamp(min=0)] * (chosen >= 0)
    columns = columns.movedim(1, 0).double()
    labels = torch.stack([pick.labels for pick in picks])
    train = ~split.test
    return rule.decide(columns[:, train], labels[:, train], columns[:, split.test], split.seed)


def _permutations(split: Split, draws: int) -> list[Tensor]:
    """Return permutations of the training labels; labels of the test part are unchanged."""
    places = (~split.test).nonzero()[:, 0]
    permuted = []
    for draw in range(draws):
        labels = split.labels.clone()
        order = torch.from_numpy(permutation(len(places), split.seed, draw, 1))
        labels[places] = split.labels[places[order]]
        permuted.append(labels)
    return permuted


def _random_sets(
    best: Tensor, activity: Tensor, live: Tensor, generator: torch.Generator, draws: int
) -> Tensor:
    """Draw sets [draws, k] of alive latents, each about as active as the latent it replaces."""
    order = activity.argsort(stable=True)
    order = order[live[order]]
    rank = torch.full((len(activity),), -1)
    rank[order] = torch.arange(len(order))
    reach = max(_FEWEST_NEAR, int(len(order) * _NEAR))
    sets = torch.full((draws, len(best)), -1)
    for its in sets:
        taken = set(best.tolist())
        for place, latent in enumerate(best.tolist()):
            centre = int(rank[latent]) if latent >= 0 else -1
            if centre < 0:
                continue
            window = order[max(centre - reach, 0) : centre + reach + 1].tolist()
            free = [other for other in window if other not in taken]
            if free:
                its[place] = free[int(torch.randint(len(free), (), generator=generator))]
                taken.add(int(its[place]))
    return sets


@torch.no_grad()
def probe_wide(
    columns: Tensor, standardise: bool, split: Split, rule: ProbingRule
) -> tuple[float, Interval]:
    """Fit an L2-penalised probe to all columns, with C chosen in five folds.

    Args:
        columns: [n, p] columns of the examples.
        standardise: scale columns to variance 1; otherwise log(1 + column) is taken and rows are
            scaled to norm 1.
        split: labels, and the mask of the test part.
        rule: rule whose measure is used.

    Returns:
        The value on the test part, and its interval.
    """
    train = ~split.test
    if standardise:
        _, columns = standardised(columns[train], columns)
    else:
        columns = torch.nn.functional.normalize(columns.double().log1p(), dim=1)
    z = principal_coordinates(columns, train)
    if not z.shape[1]:
        z = z.new_zeros(len(z), 1)
    z = z / z[train].square().sum(1).mean().sqrt().clamp(min=1e-300)
    labels = split.labels[train][None]
    folds = folds_of(labels[0], split.seed)
    penalty = choose_penalty(z[train][None], labels, _WIDE_PENALTIES, folds)
    fit = fit_l2(z[train][None], labels, penalty)
    decisions = z[split.test] @ fit.weight[0, 0] + fit.intercept[0, 0]
    truth = split.labels[split.test]
    return rule.measure.value(truth, decisions), rule.measure.interval(truth, decisions)
