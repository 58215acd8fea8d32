"""Evaluation of steering: outcomes of texts written along latents and along controls."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.activations.protocol import ActivationSource
from saefast.evaluation.conditions import Condition
from saefast.evaluation.scores import TRAINED, Evaluation, Score
from saefast.evaluation.steering.inputs import (
    check_per_latent,
    of_items,
    partners_of,
    primary_outcome,
    sampled_items,
)
from saefast.evaluation.steering.latents import SiteRows
from saefast.evaluation.steering.outcomes import (
    Embedding,
    Outcome,
    Preference,
    Rater,
    Rule,
    chosen_outcomes,
)
from saefast.evaluation.steering.predictors import (
    Examine,
    Properties,
    as_score,
    examined,
    predicted_gain,
    prediction_notes,
)
from saefast.evaluation.steering.results import Results, measures
from saefast.evaluation.steering.runs import (
    CONTROLS,
    LATENT,
    STRENGTH_RULES,
    Plan,
    Settings,
)
from saefast.evaluation.steering.scores import NAME, noise_of, scores_of
from saefast.evaluation.steering.steered import steered
from saefast.lm.corpus import Texts
from saefast.lm.generation import Opening
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.patch import check_sae
from saefast.match.result import Matches
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, as_groups

OPENERS = (
    "The first thing that I noticed about",
    "In the middle of the afternoon, the",
    "There are several ways in which this",
    "She opened the door and saw that",
    "According to the report, most of the",
    "When we talk about it now, it",
    "This part of the text explains how",
    "On the table there was a note:",
)
"""Default prompts of `steer`"""
STRENGTHS = (0.4, 0.8, 1.6, 3.2)
"""Default strengths of `steer`"""

Explanations = Sequence[Sequence[str | None]]
"""For each SAE, the explanation of each latent, or None"""
Rules = Sequence[Mapping[int, Rule]]
"""For each SAE, {latent: executable explanation}"""


@torch.no_grad()
def steer(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    explanations: Explanations | Mapping[str, Explanations] | None = None,
    *,
    features: int = 60,
    rival_features: int | None = None,
    openers: Sequence[str] = OPENERS,
    strengths: Sequence[float] = STRENGTHS,
    rule: str = "activation",
    rules: Rules | Mapping[str, Rules] | None = None,
    matches: Mapping[tuple[int, int], Matches] | None = None,
    embedding: Embedding | None = None,
    judge: Rater | None = None,
    outcome: str | None = None,
    predictors: Properties | None = None,
    examine: Examine | None = None,
    controls: Sequence[str] = CONTROLS,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Sequence[Tensor] | None = None,
    draws: int = 20,
    activations: ActivationSource | None = None,
    tokens: Tensor | None = None,
    positions: Tensor | None = None,
    corpus: Texts | None = None,
    rows: int = 32768,
    new_tokens: int = 30,
    temperature: float = 0.7,
    top_p: float = 0.9,
    least_gain: float = 0.1,
    most_loss: float = 1.0,
    batch_size: int = 256,
    repeats: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Steer along a sample of latents and measure whether the texts show them.

    Each text continues an opener while a latent's decoder row is added at every new position. All
    texts of an opener share their sampling noise with an unsteered text; a second unsteered text
    with its own noise gives the rate of success by chance. The strength of each latent is chosen on
    half of the openers; results are reported on the other half, together with the results of
    controls, which are directions of the same length.

    Outcomes, each measured where it is defined:

    - rule: share of new tokens on which the latent's executable explanation holds;
    - other seed: share of new tokens on which its matches in other SAEs fire when the unmodified
      model reads the text;
    - judge: whether a judge prefers the text to the unsteered one in both orders;
    - self: share of new tokens on which the latent itself fires when the unmodified model reads
      the text;
    - embedding: cosine of the vectors of text and explanation.

    A text is a success if its outcome exceeds the outcome of the unsteered text by at least
    `least_gain`, and its mean loss under the unmodified model exceeds the loss of the unsteered
    text by less than `most_loss`. The primary measure is the share of successes minus the share
    along the mismatched direction.

    Args:
        model: language model, from `load_model`.
        layer: site of the SAEs, as in `saefast.lm.find_site`.
        saes: SAEs of different seeds, trained on the activations of that site.
        explanations: for each SAE the explanation of each latent, or None. For explanations of
            other conditions, pass a dict {name of the condition: its explanations}.
        features: number of latents of each SAE, from those that fire: equally many from each set
            of groups, and evenly over firing rates.
        rival_features: number of latents of each SAE of `conditions`; None: `features`.
        openers: prompts; those at even positions choose strengths, the others are reported.
        strengths: multiples of the unit of `rule`; with a single one, all openers are reported.
        rule: unit of the strengths. "activation": the 99 % quantile of the latent's activation
            times the length of its decoder row; "norm": the mean length of an activation at the
            site; "fixed": 1; "clamp": the activation is set to that multiple of the 99 % quantile.
        rules: for each SAE {latent: callable that takes tokens [n, length] and returns bool
            [n, length]}; for other conditions as in `explanations`.
        matches: result of `match_all` for the SAEs.
        embedding: callable that returns vectors [n, width] of texts.
        judge: judge such as a `TextRater`: its `rate(explanations, texts)` returns a probability
            for each pair; texts to compare are adjacent.
        outcome: primary outcome; None: the first defined one of rule, other seed, judge, self.
        predictors: by name, for each SAE a property [m] of its latents, such as the score of their
            explanations.
        examine: callable that takes for each SAE the indices [f] of its sampled latents, and
            returns further predictors {name: [m] for each SAE}, such as a judge's scores of
            explanations; their values are also columns `steer_NAME` of the features.
        controls: any of "mismatched" (another latent that fires as often), "random", "covariance"
            (random with the covariance of the activations), "minus", "diffmean" (mean activation
            where the latent fires, minus the mean of all).
        conditions: other SAEs to evaluate.
        groups: for each SAE its groups {name: [m] bool}.
        mass: for each SAE the activation mass [m]; if given, groups are compared with random
            latents of the same mass.
        draws: number of random sets for each group.
        activations: activations [n, d] of the site, on which the firings of latents are measured;
            None: they are read from text.
        tokens: [rows] tokens of `activations`; None: the tokens of the store, if it has them.
        positions: [rows] positions of `activations` in their contexts; None: as for `tokens`.
        corpus: text to read without `activations`; None: the held-out part of `builtin_corpus()`.
        rows: maximum number of activations to read.
        new_tokens: number of tokens of each text.
        temperature: temperature of sampling.
        top_p: probability mass of nucleus sampling.
        least_gain: minimum gain of a success.
        most_loss: bound on the rise of the loss of a success, in nats.
        batch_size: number of texts in a forward pass.
        repeats: number of repetitions with other seeds, whose spread is the noise of all measures;
            1: the noise of the primary measure is estimated by resampling the latents.
        seed: seed of the sample of latents, of random directions and of sampling noise.
        progress: show progress bars on stderr.

    Returns:
        Scores of each outcome along latents and controls, by condition and group, with notes.
        `features` holds for each SAE the results of its sampled latents.
    """
    check_model(model)
    fewer = features if rival_features is None else rival_features
    for name, value in (
        *(("features", features), ("rival_features", fewer), ("draws", draws), ("rows", rows)),
        *(("new_tokens", new_tokens), ("repeats", repeats), ("batch_size", batch_size)),
    ):
        checks.whole(name, value)
        checks.at_least(name, value, 1)
    _check_choices(openers, strengths, rule, controls)
    read = SiteRows(model, layer, activations, tokens, positions, corpus, rows, progress)
    width = Opening(model, layer, openers[0], batch_size=1).activations.shape[1]
    if read.d != width:
        raise ValueError(
            f"activations must be from the site {layer!r}, whose width is {width}, got width "
            f"{read.d}"
        )
    every = _checked_saes(saes, conditions, width)
    trained = every[0][1]
    each_groups = as_groups(groups or [{} for _ in trained], [sae.m for sae in trained])
    properties = {f"predictors[{name!r}]": each for name, each in (predictors or {}).items()}
    for name, each in (properties if mass is None else {"mass": mass, **properties}).items():
        check_per_latent(name, each, trained)
    repetitions = []
    for repeat in range(repeats):
        settings = Settings(
            rule=rule,
            tokens=new_tokens,
            temperature=temperature,
            top_p=top_p,
            least_gain=least_gain,
            most_loss=most_loss,
            batch_size=batch_size,
            seed=seed + repeat,
        )
        items = sampled_items(every, each_groups, read, (features, fewer), settings.seed)
        outcomes = chosen_outcomes(
            items.members,
            rules=of_items("rules", rules, items),
            explanations=of_items("explanations", explanations, items),
            partners=partners_of(matches, items, trained),
            embedding=embedding,
            judge=judge,
        )
        plan = Plan(
            model=model,
            site=layer,
            openers=openers,
            items=items,
            outcomes=outcomes,
            settings=settings,
        )
        levels = items.levels(rule, strengths, read)
        primary = primary_outcome(outcome, outcomes)
        results = steered(plan, primary, strengths, levels, (LATENT, *controls), progress)
        of_measures = list(measures(results))
        scores = [
            score
            for measure in of_measures
            for score in scores_of(measure, items.sample, each_groups, mass, draws, seed)
        ]
        # With several repetitions the noise is their spread.
        noise = noise_of(of_measures[0], items.sample, seed) if repeats == 1 else {}
        repetitions.append(_Repetition(results, scores, noise, _judged(outcomes)))
    return _evaluation(repetitions, trained, predictors or {}, examine, seed)


class _Repetition(NamedTuple):
    """Results with one seed."""

    results: Results
    scores: list[Score]
    noise: dict[str, float]
    """estimate of the noise by resampling, if there is no other repetition"""
    notes: list[str]


def _checked_saes(
    saes: SAE | Sequence[SAE], conditions: Sequence[Condition], width: int
) -> list[tuple[str, list[SAE]]]:
    """Return the SAEs of each condition by name, the trained ones first, or raise an error."""
    every = [(TRAINED, as_saes(saes, width))]
    every += [(each.name, as_saes(each.saes, width)) for each in conditions]
    for sae in (sae for _, each in every for sae in each):
        check_sae(sae)
    return every


def _evaluation(
    repetitions: Sequence[_Repetition],
    trained: Sequence[SAE],
    predictors: Properties,
    examine: Examine | None,
    seed: int,
) -> Evaluation:
    """Return the results of the first repetition, with predictors of the gain and the noise."""
    results, scores, noise, notes = repetitions[0]
    found = examined(examine, results.items, trained)
    predicted = predicted_gain(results, {**predictors, **found}, seed)
    return Evaluation(
        name=NAME,
        scores=(*scores, *(as_score(one) for one in predicted)),
        noise=noise if len(repetitions) == 1 else _noise([each.scores for each in repetitions]),
        features=tuple(
            {
                **results.columns(place, sae.m),
                **{f"steer_{name.replace(' ', '_')}": each[place] for name, each in found.items()},
            }
            for place, sae in enumerate(trained)
        ),
        notes=(*results.notes(), *notes, *prediction_notes(predicted, results.primary)),
    )


def _check_choices(
    openers: Sequence[str], strengths: Sequence[float], rule: str, controls: Sequence[str]
) -> None:
    checks.one_of("rule", rule, STRENGTH_RULES)
    for control in controls:
        checks.one_of("controls", control, CONTROLS)
    if not strengths:
        raise ValueError("strengths must hold at least one number, got none")
    for strength in strengths:
        checks.at_least("strengths", strength, 0.0)
    fewest = 1 if len(strengths) == 1 else 2
    if isinstance(openers, str) or len(openers) < fewest:
        raise ValueError(
            f"openers must be at least {fewest} texts, since half of them choose the strength, got "
            f"{openers!r}"
        )


def _judged(outcomes: Mapping[str, Outcome]) -> list[str]:
    judge = outcomes.get("judge")
    if not isinstance(judge, Preference):
        return []
    return [
        f"steer: the judge {judge.judge.name} gave no number in {judge.unread} of {judge.asked} "
        f"answers, which do not count as success"
    ]


def _noise(runs: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Return by measure the standard deviation of the overall value over repetitions."""
    values: dict[str, list[float]] = {}
    for scores in runs:
        for score in scores:
            overall = not score.task and score.seed is None and not score.group
            if overall and score.condition == TRAINED:
                values.setdefault(score.measure, []).append(score.value)
    return {name: float(np.std(each, ddof=1)) for name, each in values.items()}
