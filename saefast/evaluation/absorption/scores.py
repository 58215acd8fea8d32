"""Scores of absorption: over words, over classes and by groups of latents."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.absorption.classes import Absorbed, Split
from saefast.evaluation.condition_scores import scores_by_condition
from saefast.evaluation.intervals import SHARE, two_way_interval
from saefast.evaluation.item_scores import scores_of_items
from saefast.evaluation.scores import TRAINED, Score
from saefast.nulls.draws import mass_matched

NAME = "absorb"
PRIMARY = "absorption fraction"
CENTRED = "absorption fraction, centred"
FULL = "full absorption"
MAIN_F1 = "F1 of main latents"
MAIN_COUNT = "main latents"

CONVENTIONS = {
    PRIMARY: "contribution of absorbing latents to a word's projection on the probe of its class, "
    "as a share of their and the main latents' contributions, mean over held-out words whose class "
    "a probe recognises; less is better. floor: with the main latents of another class, unknown if "
    "there is none; ceiling: 0",
    CENTRED: "the same with the mean taken from the activation, which no latent explains",
    FULL: "share of those words in which no main latent fires and another contributes most",
    MAIN_F1: "F1 of a logistic regression on the main latents, on held-out words. floor: assigning "
    "every word to the class; ceiling: the probe of the activation",
    MAIN_COUNT: "number of main latents of a class",
}

_DRAWS = 20

Values = NDArray[np.float64]


def _stacked(parts: Sequence[Tensor]) -> Values:
    """Return the values of all SAEs as one array [SAEs, items]."""
    return np.stack([part.double().cpu().numpy() for part in parts])


def scores_of_words(
    found: Mapping[str, Sequence[Absorbed]], split: Split, classes: Sequence[str], seed: int
) -> list[Score]:
    """Build scores whose items are words: over all, and for each class."""
    floor = _stacked([each.mismatched for each in found[TRAINED]]).mean(0)
    scores: list[Score] = []
    for measure in (PRIMARY, CENTRED, FULL):
        values = {
            name: _stacked([_of(each, measure) for each in its]) for name, its in found.items()
        }
        its_floor = floor if measure == PRIMARY else np.full_like(floor, np.nan)
        scores += scores_of_items(
            NAME,
            measure,
            values,
            floor=its_floor,
            ceiling=0.0,
            limits=SHARE,
            primary=measure == PRIMARY,
            seed=seed,
        )
        for name, table in values.items():
            scores += _by_class(measure, name, table, its_floor, split, classes, seed)
    return scores


def _of(each: Absorbed, measure: str) -> Tensor:
    return {PRIMARY: each.fraction, CENTRED: each.centred, FULL: each.full}[measure]


def _by_class(
    measure: str,
    condition: str,
    table: Values,
    floor: Values,
    split: Split,
    classes: Sequence[str],
    seed: int,
) -> list[Score]:
    ends = list(accumulate(map(len, split.places)))
    scores = []
    for c, places, end in zip(split.recognised.tolist(), split.places, ends, strict=True):
        if not len(places):
            continue
        its = slice(end - len(places), end)
        scores.append(
            Score(
                evaluation=NAME,
                measure=measure,
                condition=condition,
                **two_way_interval(table[:, its], seed=seed, limits=SHARE)._asdict(),
                n=len(places),
                task=classes[c],
                floor=float(floor[its].mean()),
                ceiling=0.0,
            )
        )
    return scores


def scores_of_groups(
    trained: Sequence[Absorbed],
    split: Split,
    masks: Sequence[Mapping[str, Tensor]],
    mass: Sequence[Tensor] | None,
    seed: int,
) -> list[Score]:
    """Build scores of absorption by latents of each group, and by random latents of equal mass."""
    scores = []
    for group in masks[0] if masks else ():
        values = {
            group: _stacked(
                [each.by_group(m[group]) for each, m in zip(trained, masks, strict=True)]
            )
        }
        if mass is not None:
            values[f"{group}:mass"] = _stacked(
                [
                    _of_random_latents(each, its[group], weight, seed)
                    for each, its, weight in zip(trained, masks, mass, strict=True)
                ]
            )
        for name, table in values.items():
            scores.append(
                Score(
                    evaluation=NAME,
                    measure=PRIMARY,
                    condition=TRAINED,
                    **two_way_interval(table, seed=seed, limits=SHARE)._asdict(),
                    n=split.words,
                    group=name,
                    ceiling=0.0,
                )
            )
    return scores


def _of_random_latents(each: Absorbed, mask: Tensor, mass: Tensor, seed: int) -> Tensor:
    """Return the mean over draws of random latents with a group's mass, [words] float64."""
    drawn = [
        each.by_group(mass_matched(mask.cpu(), mass.cpu(), seed, draw)) for draw in range(_DRAWS)
    ]
    return torch.stack(drawn).mean(0)


def scores_of_classes(
    found: Mapping[str, Sequence[Absorbed]], split: Split, classes: Sequence[str], seed: int
) -> list[Score]:
    """Build scores whose items are classes: F1 score and number of the main latents."""
    names = [classes[c] for c in split.recognised.tolist()]
    share = split.positive[split.test].double().mean(0)[split.recognised].cpu().numpy()
    scores = scores_by_condition(
        NAME,
        MAIN_F1,
        {name: _stacked([each.main_f1 for each in its]) for name, its in found.items()},
        names,
        floor=2 * share / (1 + share),
        ceiling=split.f1[split.recognised].cpu().numpy(),
        rivals=[name for name in found if name != TRAINED],
        limits=SHARE,
        seed=seed,
    )
    counts = {
        name: np.array([[float(len(latents)) for latents in each.main] for each in its])
        for name, its in found.items()
    }
    return [*scores, *scores_by_condition(NAME, MAIN_COUNT, counts, names, floor=1.0, seed=seed)]


def noise_of_splits(
    trained: Sequence[Absorbed], again: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Return the standard deviation over splits of the mean over SAEs."""
    values = [
        [float(each.fraction.mean()), *more] for each, more in zip(trained, again, strict=True)
    ]
    repeated = np.array(values).mean(0)
    return {PRIMARY: float(repeated.std(ddof=1))} if len(repeated) > 1 else {}


def feature_columns(
    each: Absorbed, split: Split, classes: Sequence[str]
) -> dict[str, Tensor | list[str]]:
    main_of = [""] * each.m
    for c, latents in zip(split.recognised.tolist(), each.main, strict=True):
        for latent in latents.tolist():
            main_of[latent] = classes[c]
    return {"absorbed_words": each.by_latent(), "main_of": main_of}
