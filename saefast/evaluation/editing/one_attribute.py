"""Edits of one attribute: choice of latents on training pairs, outcomes on held-out entities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.editing.facts import TEST, TRAIN, VALIDATION
from saefast.evaluation.editing.interchange import Change, Interchange, Swap
from saefast.evaluation.editing.masks import (
    active,
    attribution,
    best,
    random_mask,
    trained_mask,
)
from saefast.evaluation.editing.pairs import TEMPLATES, Pair, Task, prompts_of
from saefast.evaluation.intervals import Floats
from saefast.progress import ProgressBar

ATTRIBUTION, MASK = "attribution", "mask"
SELECTORS = (ATTRIBUTION, MASK)

CHOSEN, NONE, ALL, RANDOM = "chosen", "no edit", "swap all latents", "random latents"
OTHER_ERROR = "other error"
MASS = "mass"
RANDOM_DRAWS = 3


class Outcome(NamedTuple):
    """Numbers of wanted answers and of pairs, by entity of the base prompt."""

    cause_hits: Floats
    """[entities] number of cause pairs with the wanted answer"""
    cause_pairs: Floats
    """[entities] number of cause pairs"""
    isolation_hits: Floats
    """[entities] number of isolation pairs with the wanted answer"""
    isolation_pairs: Floats
    """[entities] number of isolation pairs"""

    @property
    def entities(self) -> int:
        """Number of entities with a pair."""
        return int(((self.cause_pairs + self.isolation_pairs) > 0).sum())

    def rates(self, counts: Floats | None = None) -> tuple[Floats, Floats]:
        """Return cause and isolation, [draws] each, with entities counted [draws, entities]."""
        weights = np.ones((1, len(self.cause_pairs))) if counts is None else counts
        hits = (weights @ self.cause_hits, weights @ self.isolation_hits)
        pairs = (weights @ self.cause_pairs, weights @ self.isolation_pairs)
        cause, isolation = (
            np.divide(h, p, out=np.full(len(p), np.nan), where=p > 0)
            for h, p in zip(hits, pairs, strict=True)
        )
        return cause, isolation

    def pooled(self, other: "Outcome") -> "Outcome":
        """Return the outcome over the pairs of both."""
        return Outcome(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def harmonic(cause: Floats, isolation: Floats) -> Floats:
    """Return the harmonic mean, 0 where both are 0."""
    total = cause + isolation
    return np.divide(2 * cause * isolation, total, out=np.zeros_like(total), where=total != 0)


class Unit(NamedTuple):
    """One SAE of one condition, with the groups of its latents."""

    condition: str
    place: int
    """position of the SAE in its condition"""
    swap: Swap
    groups: Mapping[str, Sequence[Tensor]]
    """by name, masks [m]; "NAME:mass" for random draws of equal mass"""
    chosen: Tensor | None = None
    """mask [m] of the latents to interchange; None: they are selected"""


@dataclass(frozen=True, kw_only=True)
class Edited:
    """Outcomes of one unit on one attribute."""

    outcomes: dict[str, Outcome]
    """outcomes by edit: `CHOSEN`, rivals, `at(n)`, `TEMPLATES`, `OTHER_ERROR`, groups"""
    latents: int
    """number of latents that the chosen edit interchanges"""
    active: float
    """mean share of the base's active latents among them"""
    active_at_random: float
    """mean of that share for random latents"""
    scores: Tensor
    """[m] selection scores: attribution, or 1 for latents of a trained or given mask"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the choice and execution of edits."""

    selector: str
    n: tuple[int, ...]
    with_error: bool
    batch_size: int
    seed: int


def at(n: int) -> str:
    """Return the name of the edit of n latents."""
    return f"at {n}"


@dataclass
class _Edits:
    """Masks of one unit, by the name of the edit."""

    masks: dict[str, list[Tensor]] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.empty(0))


def edit_attribute(
    runs: Interchange, task: Task, units: Sequence[Unit], settings: Settings, bar: ProgressBar
) -> tuple[list[Edited], Outcome]:
    """Edit one attribute with every unit.

    Returns:
        Outcomes of each unit's edits, and the outcome of interchanging the whole activation.
    """
    found = [_Edits() for _ in units]
    _select(runs, task, units, found, settings, bar)
    changes: list[Change] = []
    owners: list[tuple[int, str]] = []

    def add(unit: int, name: str, mask: Tensor, with_error: bool = settings.with_error) -> None:
        changes.append(units[unit].swap.change(mask, with_error=with_error))
        owners.append((unit, name))

    for number, its in enumerate(found):
        for name, masks in its.masks.items():
            for mask in masks:
                add(number, name, mask)
        add(number, OTHER_ERROR, its.masks[CHOSEN][0], not settings.with_error)
    outcomes = _outcomes(runs, task.pairs[TEST], [*changes, runs.whole], bar)
    elsewhere = _outcomes(
        runs,
        task.pairs[TEMPLATES],
        [
            unit.swap.change(its.masks[CHOSEN][0], with_error=settings.with_error)
            for unit, its in zip(units, found, strict=True)
        ],
        bar,
    )
    edited = []
    for number, (unit, its) in enumerate(zip(units, found, strict=True)):
        by_name: dict[str, Outcome] = {}
        for (owner, name), outcome in zip(owners, outcomes, strict=False):
            if owner == number:
                by_name[name] = by_name[name].pooled(outcome) if name in by_name else outcome
        by_name[TEMPLATES] = elsewhere[number]
        chosen = its.masks[CHOSEN][0]
        edited.append(
            Edited(
                outcomes=by_name,
                latents=int(chosen.sum()),
                active=_share_of_active(unit.swap, [chosen], task.pairs[TEST]),
                active_at_random=_share_of_active(unit.swap, its.masks[RANDOM], task.pairs[TEST]),
                scores=its.scores,
            )
        )
    return edited, outcomes[-1]


def _select(
    runs: Interchange,
    task: Task,
    units: Sequence[Unit],
    found: list[_Edits],
    settings: Settings,
    bar: ProgressBar,
) -> None:
    """Set the masks of all units."""
    pairs = task.pairs[TRAIN]
    open_ = [place for place, unit in enumerate(units) if unit.chosen is None]
    if settings.selector == ATTRIBUTION:
        gradients = runs.gradients(pairs, bar)
        for place in open_:
            its = found[place]
            its.scores = attribution(units[place].swap, pairs, gradients)
            its.masks = {at(n): [best(its.scores, n)] for n in settings.n}
        _choose(runs, task, [units[p] for p in open_], [found[p] for p in open_], settings, bar)
    for unit, its in zip(units, found, strict=True):
        if CHOSEN not in its.masks:
            mask = unit.chosen
            if mask is None:
                mask = _trained(runs, unit.swap, pairs, settings, bar, None)
            its.masks[CHOSEN] = [mask]
            its.scores = mask.double()
    for unit, its in zip(units, found, strict=True):
        size = int(its.masks[CHOSEN][0].sum())
        everything = torch.ones(unit.swap.sae.m, dtype=torch.bool)
        its.masks[NONE] = [~everything]
        its.masks[ALL] = [everything]
        among = active(unit.swap, pairs)
        its.masks[RANDOM] = [
            random_mask(among, size, settings.seed, draw) for draw in range(RANDOM_DRAWS)
        ]
        for name, allowed in unit.groups.items():
            its.masks[name] = [
                best(its.scores, size, each)
                if settings.selector == ATTRIBUTION
                else _trained(runs, unit.swap, pairs, settings, bar, each)
                for each in allowed
            ]


def _choose(
    runs: Interchange,
    task: Task,
    units: Sequence[Unit],
    found: list[_Edits],
    settings: Settings,
    bar: ProgressBar,
) -> None:
    """Choose for each unit the number of latents with the largest harmonic mean on validation."""
    changes = [
        unit.swap.change(its.masks[at(n)][0], with_error=settings.with_error)
        for unit, its in zip(units, found, strict=True)
        for n in settings.n
    ]
    outcomes = _outcomes(runs, task.pairs[VALIDATION], changes, bar)
    for number, its in enumerate(found):
        mine = outcomes[number * len(settings.n) : (number + 1) * len(settings.n)]
        values = [float(harmonic(*outcome.rates())[0]) for outcome in mine]
        # Ties go to the first, which has the fewest latents.
        its.masks[CHOSEN] = its.masks[at(settings.n[int(np.argmax(np.nan_to_num(values)))])]


def _trained(
    runs: Interchange,
    swap: Swap,
    pairs: Sequence[Pair],
    settings: Settings,
    bar: ProgressBar,
    allowed: Tensor | None,
) -> Tensor:
    return trained_mask(
        runs,
        swap,
        pairs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        bar=bar,
        allowed=allowed,
    )


def _outcomes(
    runs: Interchange, pairs: Sequence[Pair], changes: Sequence[Change], bar: ProgressBar
) -> list[Outcome]:
    hits, valid = runs.outcomes(pairs, changes, bar)
    cause = np.array([pair.cause for pair in pairs]) & valid.numpy()
    isolation = ~np.array([pair.cause for pair in pairs]) & valid.numpy()
    entity = np.array([runs.questions[pair.base].entity for pair in pairs])
    size = int(max(question.entity for question in runs.questions)) + 1

    def by_entity(which: np.ndarray) -> Floats:
        counts: Floats = np.zeros(size)
        np.add.at(counts, entity, which)
        return counts

    return [
        Outcome(
            by_entity(cause & row),
            by_entity(cause),
            by_entity(isolation & row),
            by_entity(isolation),
        )
        for row in hits.numpy()
    ]


def _share_of_active(swap: Swap, masks: Sequence[Tensor], pairs: Sequence[Pair]) -> float:
    """Return the mean over masks of the share of the base's active latents in the mask."""
    base, _ = prompts_of(pairs)
    code = swap.of(base)
    on = code.values != 0
    edited = torch.stack([on & mask.to(on.device)[code.indices] for mask in masks])
    return float((edited.sum(2) / on.sum(1).clamp(min=1)).mean())
