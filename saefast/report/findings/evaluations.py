"""Findings from the scores of evaluations."""

import math
from collections.abc import Iterable, Iterator, Mapping

from saefast.evaluation.scores import Score
from saefast.report.findings.finding import (
    AGREES,
    DISAGREES,
    FAILS,
    HOLDS,
    MIXED,
    UNCLEAR,
    Finding,
    by_interval,
    compared,
)
from saefast.report.run_data import RunData
from saefast.report.score_rows import (
    TITLES,
    correlations,
    differences,
    in_words,
    interval,
    joint_correlations,
    least_difference,
    of_groups,
    overall,
    trained,
)

BASELINES = ("frozen_decoder", "soft_frozen", "frozen_encoder")
"""Conditions whose directions do not learn, or hardly, as in arXiv 2602.14111."""
_NOT_TOLD = (
    *("residual", "pca", "permuted_decoder", "full", "text"),
    *("random latents", "permuted labels", "scrambled"),
)
"""Conditions that are floors and ceilings rather than SAEs to choose from."""
_MARGIN = 0.03
"""Lead over these baselines up to which that paper calls trained SAEs no better."""
_SURFACE, _AT_EQUAL_RATE = "explained by surface", "unstable - stable at equal firing rate"
_WEAK = 0.3
"""Correlation below which explanations are weak predictors of steering; published: .06 to .3."""


def probing(data: RunData) -> Iterator[Finding]:
    """Report whether probes of trained latents beat those of baselines."""
    yield from _beside_baselines(data, "probe", BASELINES, _MARGIN)
    yield from _by_group(data, "probe")


def explaining(data: RunData) -> Iterator[Finding]:
    """Report whether trained latents are explained better than those of baselines."""
    yield from _beside_baselines(data, "explain", BASELINES, _MARGIN)
    yield from _by_group(data, "explain")


def surface_form(data: RunData) -> Iterator[Finding]:
    """Report whether surface form explains unstable latents more often at equal rate."""
    groups = of_groups(data, "explain", _SURFACE)
    difference = next(
        (
            score
            for score in overall(data, "explain")
            if (score.measure, score.group) == (_SURFACE, _AT_EQUAL_RATE)
        ),
        None,
    )
    if difference is None or not {"stable", "unstable"} <= groups.keys():
        return
    if math.isnan(difference.value):
        return
    holds = by_interval(difference.low, difference.high)
    yield Finding(
        TITLES["explain"],
        f"Share of latents explained by surface form: unstable {in_words(groups['unstable'])}, "
        f"stable {in_words(groups['stable'])}; at equal firing rate the difference is "
        f"{difference.value:+.3f} ({interval(difference)}).",
        compared(holds),
        claim="At equal frequency surface form explains more of the unstable latents",
        holds=holds,
        evidence=f"difference {difference.value:+.3f} ({interval(difference)})",
        figure="evaluation-explain",
    )


def steering(data: RunData) -> Iterator[Finding]:
    """Report the success of steering with trained latents."""
    yield from _beside_baselines(data, "steer", (), _MARGIN)
    yield from _by_group(data, "steer")


def prediction(data: RunData) -> Iterator[Finding]:
    """Report whether scores of explanations predict steering."""
    scores = correlations(data)
    if not scores:
        return
    listed = ", ".join(
        f"{score.task.replace('_', ' ')} {score.value:+.2f} ({interval(score)}; {score.n} latents)"
        for score in scores
    )
    verdict = _joint(
        AGREES if score.high < _WEAK else DISAGREES if score.low > _WEAK else UNCLEAR
        for score in scores
    )
    yield Finding(
        TITLES["steer"],
        f"Rank correlation with the gain from steering: {listed}. At 0, explanations do not "
        f"predict steering; published values are weak, 0.06 to 0.3.{_held_fixed(data)}",
        verdict,
        claim=f"Explanations hardly predict steering (rank correlation below {_WEAK:g})",
        holds={AGREES: HOLDS, DISAGREES: FAILS, MIXED: FAILS}.get(verdict, UNCLEAR),
        evidence=", ".join(
            f"{score.task.replace('_', ' ')} {score.value:+.2f}" for score in scores
        ),
        figure="explanations-steering",
    )


def _held_fixed(data: RunData) -> str:
    """Return a sentence on explanation, stability and firing rate with the others held fixed."""
    listed = [
        f"{score.task.replace('_', ' ')} {score.value:+.2f} ({interval(score)})"
        for score in joint_correlations(data)
    ]
    return f" With the others of these held fixed: {', '.join(listed)}." if listed else ""


def editing(data: RunData) -> Iterator[Finding]:
    """Report whether edits by trained latents beat those of a baseline that hardly learns."""
    yield from _beside_baselines(data, "edit", ("soft_frozen",), 0.0)
    yield from _by_group(data, "edit")


def absorption(data: RunData) -> Iterator[Finding]:
    """Report how much other latents take over from those of a class."""
    yield from _beside_baselines(data, "absorb", (), _MARGIN)
    yield from _by_group(data, "absorb")


def _beside_baselines(
    data: RunData, name: str, compared: tuple[str, ...], margin: float
) -> Iterator[Finding]:
    """Report the primary measure of the trained SAEs and their lead over other conditions.

    Args:
        data: files of the run.
        name: name of the evaluation.
        compared: baselines over which papers report a lead of at most `margin`.
        margin: that lead.

    Yields:
        Findings on the evaluation, if it was measured.
    """
    score = trained(data, name)
    if score is None or math.isnan(score.value):
        return
    leads = {
        condition: lead
        for condition, lead in differences(data, name).items()
        if condition not in _NOT_TOLD and not math.isnan(lead.value)
    }
    text = f"Trained SAEs, {score.measure}: {in_words(score)}."
    if leads:
        listed = ", ".join(
            f"to {condition} {lead.value:+.3f} ({interval(lead)})"
            for condition, lead in leads.items()
        )
        text += f" Their difference {listed}."
    least = least_difference(data, name, score.measure)
    if least is not None:
        text += (
            f" Differences of two SAEs below {least:.3f} are within the noise of the evaluation."
        )
    published = {condition: leads[condition] for condition in compared if condition in leads}
    if compared and not published:
        text += f" There is no baseline to compare with ({', '.join(compared)})."
    yield Finding(
        TITLES[name],
        text,
        _no_better(published, margin, least),
        **_claimed(name, score, published),
    )


def _claimed(name: str, score: Score, baselines: Mapping[str, Score]) -> dict[str, str]:
    """Return the fields of a finding on whether trained SAEs beat baselines, or else the floor."""
    if baselines:
        decided = [by_interval(lead.low, lead.high) for lead in baselines.values()]
        holds = HOLDS if set(decided) == {HOLDS} else FAILS if FAILS in decided else UNCLEAR
        claim = "trained SAEs beat every baseline that hardly learns"
        beside = "; ".join(
            f"lead over {condition} {lead.value:+.3f}" for condition, lead in baselines.items()
        )
    elif not math.isnan(score.floor):
        holds = by_interval(score.low - score.floor, score.high - score.floor)
        claim, beside = "trained SAEs exceed the floor", f"floor {score.floor:.3f}"
    else:
        return {}
    return {
        "claim": f"{TITLES[name]}: {claim}",
        "holds": holds,
        "evidence": f"{score.measure} {score.value:.3f}; {beside}",
        "figure": f"evaluation-{name}",
    }


def _no_better(leads: Mapping[str, Score], margin: float, least: float | None) -> str:
    """Return whether trained SAEs lead by at most the margin, as published."""
    return _joint(_lead(lead, margin, least) for lead in leads.values())


def _lead(lead: Score, margin: float, least: float | None) -> str:
    noisy = least is not None and abs(lead.value - margin) < least
    if noisy or math.isnan(lead.low):
        return UNCLEAR
    return AGREES if lead.high <= margin else DISAGREES if lead.low > margin else UNCLEAR


def _joint(verdicts: Iterable[str]) -> str:
    """Return the joint verdict of several, or an empty one if there are none."""
    different = set(verdicts)
    if len(different) <= 1:
        return "".join(different)
    return MIXED if different == {AGREES, DISAGREES} else UNCLEAR


def _by_group(data: RunData, name: str) -> Iterator[Finding]:
    """Report the measure for stable and unstable latents only, beside random ones."""
    score = trained(data, name)
    groups = of_groups(data, name, score.measure) if score else {}
    if score is None or not {"stable", "unstable"} <= groups.keys():
        return
    parts = []
    for group in ("stable", "unstable"):
        random = groups.get(f"{group}:mass")
        beside = f", random latents of equal activation mass {in_words(random)}" if random else ""
        parts.append(f"{group} latents {in_words(groups[group])}{beside}")
    yield Finding(TITLES[name], f"By stability, {score.measure}: {'; '.join(parts)}.")
