"""Steer a language model along latents, and measure whether what it writes shows them."""

from collections.abc import Mapping, Sequence

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
from saefast.evaluation.steering.latents import Rows
from saefast.evaluation.steering.outcomes import (
    SELF,
    Embedding,
    Outcome,
    Preference,
    Rater,
    Rule,
    chosen_outcomes,
)
from saefast.evaluation.steering.predictors import as_score, predicted_gain, prediction_notes
from saefast.evaluation.steering.results import Results, Trials, measures
from saefast.evaluation.steering.runs import (
    CONTROLS,
    LATENT,
    STRENGTH_RULES,
    UNSTEERED,
    Job,
    Plan,
    Settings,
    write,
)
from saefast.evaluation.steering.scores import NAME, scores_of
from saefast.evaluation.steering.tokens import token_scores
from saefast.lm.corpus import Texts
from saefast.lm.generation import Opening
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.patch import check_sae
from saefast.match.result import Matches
from saefast.progress import ProgressBar
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
"""Prompts of `steer` unless others are given"""
STRENGTHS = (0.4, 0.8, 1.6, 3.2)
"""Strengths of `steer` unless others are given"""

Explanations = Sequence[Sequence[str | None]]
"""For each SAE, those of all its latents, or None"""
Rules = Sequence[Mapping[int, Rule]]
"""For each SAE, {latent: explanation that can be executed}"""


@torch.no_grad()
def steer(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    explanations: Explanations | Mapping[str, Explanations] | None = None,
    *,
    features: int = 60,
    openers: Sequence[str] = OPENERS,
    strengths: Sequence[float] = STRENGTHS,
    rule: str = "activation",
    rules: Rules | Mapping[str, Rules] | None = None,
    matches: Mapping[tuple[int, int], Matches] | None = None,
    embedding: Embedding | None = None,
    judge: Rater | None = None,
    outcome: str | None = None,
    predictors: Mapping[str, Sequence[Tensor]] | None = None,
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
    """Steer along a sample of latents and measure what the texts show of them.

    Each text continues an opener while a latent's decoder row is added at every new position. All
    texts behind an opener share their sampling noise with an unsteered text; a second unsteered
    text with noise of its own gives the rate of success by chance. The strength of each latent is
    chosen on half of the openers, and results are reported on the other half, beside those of
    controls: directions of the same length.

    Outcomes, of which those are measured that are defined:

    - rule: share of new tokens on which the latent's executable explanation holds;
    - other seed: share on which its matches in other SAEs fire as the undisturbed model reads it;
    - judge: whether a judge prefers the text to the unsteered one in both orders;
    - self: share on which the latent itself fires as the undisturbed model reads it;
    - embedding: cosine of the vectors of text and explanation.

    A text is a success if its outcome is at least `least_gain` above that of the unsteered text,
    and its mean loss under the undisturbed model less than `most_loss` above. The primary measure
    is the share of successes less that along the mismatched direction.

    Args:
        model: from `load_model`.
        layer: as in `saefast.lm.find_site`.
        saes: those of different seeds, trained on the activations of that site.
        explanations: for each SAE those of its latents, or None where there is none. Those of
            other conditions are given by a dict {name of the condition: its explanations}.
        features: number of latents of each SAE, from those that fire: equally many from each set
            of groups, and evenly over firing rates.
        openers: prompts; those at even places choose strengths, the others are reported.
        strengths: multiples of what `rule` names; all openers are reported where there is one.
        rule: "activation": the 99 % quantile of the latent's activation times the length of its
            decoder row; "norm": the mean length of an activation at the site; "fixed": 1; "clamp":
            the activation becomes that multiple of the 99 % quantile.
        rules: for each SAE {latent: callable that takes tokens [n, length] and returns bool
            [n, length]}; those of other conditions as in `explanations`.
        matches: what `match_all` found for the SAEs.
        embedding: callable that returns vectors [n, width] of texts.
        judge: such as a `TextRater`: its `rate(explanations, texts)` returns a probability for each
            pair of them; texts to be compared stand next to each other.
        outcome: the primary one; None: the first of rule, other seed, judge, self.
        predictors: by name, for each SAE [m] a property such as the score of its explanations.
        controls: of "mismatched" (another latent that fires as often), "random", "covariance"
            (random with the covariance of the activations), "minus", "diffmean" (mean activation
            where the latent fires, less the mean of all).
        conditions: other SAEs.
        groups: for each SAE {name: [m] bool}.
        mass: for each SAE [m]; with it, random latents of the same mass stand beside groups.
        draws: number of random sets beside a group.
        activations: those of the site, which tell how strongly latents fire; None: read from text.
        tokens: [rows] tokens of `activations`; None: what a store keeps.
        positions: [rows] positions of `activations` in their contexts; None: likewise.
        corpus: text to read where there are no activations; None: the held-out part of
            `builtin_corpus()`.
        rows: the most activations that are read.
        new_tokens: tokens of each text.
        temperature: of sampling.
        top_p: of sampling.
        least_gain: least gain of a success.
        most_loss: loss in nats that a success stays below.
        batch_size: texts in a forward pass.
        repeats: repetitions of the evaluation with other seeds, for its noise.
        seed: seed of the sample of latents, of random directions and of sampling noise.
        progress: show progress bars on stderr.
    """
    check_model(model)
    for name, value in (
        *(("features", features), ("draws", draws), ("rows", rows)),
        *(("new_tokens", new_tokens), ("repeats", repeats), ("batch_size", batch_size)),
    ):
        checks.whole(name, value)
        checks.at_least(name, value, 1)
    _check_choices(openers, strengths, rule, controls)
    read = Rows(model, layer, activations, tokens, positions, corpus, rows, progress)
    width = Opening(model, layer, openers[0], batch_size=1).activations.shape[1]
    if read.d != width:
        raise ValueError(
            f"activations must be those of the site {layer!r}, whose width is {width}, got {read.d}"
        )
    trained = as_saes(saes, width)
    every = [(TRAINED, trained), *((each.name, as_saes(each.saes, width)) for each in conditions)]
    for sae in (sae for _, each in every for sae in each):
        check_sae(sae)
    each_groups = as_groups(groups or [{} for _ in trained], [sae.m for sae in trained])
    if mass is not None:
        check_per_latent("mass", mass, trained)
    for name, each in (predictors or {}).items():
        check_per_latent(f"predictors[{name!r}]", each, trained)
    runs = []
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
        items = sampled_items(every, each_groups, read, features, settings.seed)
        words = of_items("explanations", explanations, items)
        outcomes = chosen_outcomes(
            items.members,
            rules=of_items("rules", rules, items),
            explanations=words,
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
        results = _steered(plan, primary, strengths, levels, (LATENT, *controls), progress)
        scores = [
            score
            for measure in measures(results)
            for score in scores_of(measure, items.sample, each_groups, mass, draws, seed)
        ]
        runs.append((results, scores, _judged(outcomes)))
    results, scores, judged = runs[0]
    predicted = predicted_gain(results, predictors, seed)
    return Evaluation(
        name=NAME,
        scores=(*scores, *(as_score(one) for one in predicted)),
        noise=_noise([its_scores for _, its_scores, _ in runs]),
        features=tuple(results.columns(place, sae.m) for place, sae in enumerate(trained)),
        notes=(*results.notes(), *judged, *prediction_notes(predicted, results.primary)),
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
            f"openers must be at least {fewest} texts, of which half choose the strength, got "
            f"{openers!r}"
        )


def _steered(
    plan: Plan,
    primary: str,
    strengths: Sequence[float],
    levels: Tensor,
    directions: tuple[str, ...],
    progress: bool,
) -> Results:
    """Choose the strength of each latent, then steer along it and along the controls."""
    items = plan.items
    numbers = list(range(len(plan.openers)))
    choosing, reporting = (numbers[::2], numbers[1::2]) if len(strengths) > 1 else ([], numbers)
    everyone = torch.arange(len(items))
    total = len(items) * (len(choosing) * len(strengths) + len(reporting) * len(directions))
    total += UNSTEERED * len(numbers)
    with ProgressBar("steer", total=total, unit="texts", progress=progress) as bar:

        def trials(openers: Sequence[int], direction: Tensor, level: Tensor) -> Trials:
            ways = level.shape[1]
            job = Job(
                item=everyone.repeat_interleave(ways),
                direction=direction.flatten(0, 1),
                level=level.flatten(),
            )
            written = [write(plan, number, job, bar.update) for number in openers]
            return Trials.of(written, ways, plan.settings)

        tried, best = None, torch.zeros_like(everyone)
        if choosing:
            along = items.directions[LATENT][:, None].expand(-1, len(strengths), -1)
            tried = trials(choosing, along, levels)
            best = _best(tried, primary)
        along = torch.stack([items.directions[way] for way in directions], 1)
        level = levels[everyone, best][:, None].expand(-1, len(directions))
        reported = trials(reporting, along, level)
    input_score, output_score = token_scores(plan)
    return Results(
        items=items,
        outcomes=tuple(plan.outcomes),
        primary=primary,
        strengths=tuple(strengths),
        best=best,
        choosing=tried,
        reported=reported,
        directions=directions,
        input_score=input_score,
        output_score=output_score,
    )


def _best(tried: Trials, primary: str) -> Tensor:
    """The strength [items] of the largest gain, by the latent's firing where that is not known."""
    gain = tried.gain(primary)
    unknown = np.isnan(gain).any(1)
    gain[unknown] = tried.gain(SELF)[unknown]
    return torch.from_numpy(gain.argmax(1))


def _judged(outcomes: Mapping[str, Outcome]) -> list[str]:
    judge = outcomes.get("judge")
    if not isinstance(judge, Preference):
        return []
    return [
        f"steer: the judge {judge.judge.name} gave no number in {judge.unread} of {judge.asked} "
        f"answers, which count as no success"
    ]


def _noise(runs: Sequence[Sequence[Score]]) -> dict[str, float]:
    """By measure the standard deviation of the overall value over repetitions."""
    if len(runs) < 2:
        return {}
    values: dict[str, list[float]] = {}
    for scores in runs:
        for score in scores:
            overall = not score.task and score.seed is None and not score.group
            if overall and score.condition == TRAINED:
                values.setdefault(score.measure, []).append(score.value)
    return {name: float(np.std(each, ddof=1)) for name, each in values.items()}
