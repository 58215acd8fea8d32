"""Scores of rules over all latents, and of a judge over sampled latents."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from saefast.evaluation.explaining.contexts import Booleans
from saefast.evaluation.explaining.examples import SILENT_KINDS
from saefast.evaluation.explaining.explained import Explained
from saefast.evaluation.explaining.judging import WELL_EXPLAINED, Judged
from saefast.evaluation.explaining.predicates import KINDS, UNCLEAR
from saefast.evaluation.explaining.rules import CHANCE, FeatureRules
from saefast.evaluation.explaining.sample import FeatureSample, rate_edges
from saefast.evaluation.explaining.score_rows import MeasureScores
from saefast.evaluation.intervals import Floats
from saefast.evaluation.scores import TRAINED, Score

_OF_JUDGE = (
    MeasureScores("specificity", floor=0.0, ceiling=0.5, least=-1.0, primary=True),
    MeasureScores("detection", floor=0.5, ceiling=1.0),
    MeasureScores(f"detection above {WELL_EXPLAINED}", ceiling=1.0),
    MeasureScores("detection shuffled", floor=0.5, rivals=False),
    *(MeasureScores(f"detection, silent: {kind}", floor=0.5, ceiling=1.0) for kind in SILENT_KINDS),
    MeasureScores("fuzzing", floor=0.5, ceiling=1.0),
    MeasureScores("unparsed", rivals=False),
)


def rule_scores(
    subjects: Mapping[str, Sequence[Explained]],
    groups: Sequence[Mapping[str, Booleans]],
    masses: Sequence[Tensor],
    seed: int,
) -> Iterator[Score]:
    """Yield scores of rules over all latents that fire in both halves of the text.

    Args:
        subjects: SAEs by condition.
        groups: for each trained SAE its groups of latents.
        masses: for each trained SAE the activation mass of its latents, [m].
        seed: seed of the random latents that groups are compared with.
    """
    fired = [subject.firings.fired for subject in subjects[TRAINED]]
    edges = rate_edges(np.concatenate(fired))
    by_condition = {
        name: [_values(subject.rules) for subject in each] for name, each in subjects.items()
    }
    for measure, floor in (
        ("rule balanced accuracy", 0.5),
        ("explained by a rule", CHANCE),
        *((f"explained by {kind}", float("nan")) for kind in KINDS),
    ):
        rows = MeasureScores(measure, floor=floor, ceiling=1.0)
        values = {name: [its[measure] for its in each] for name, each in by_condition.items()}
        yield from rows.of_conditions(values)
        if groups[0]:
            yield from rows.of_groups(values[TRAINED], groups, masses, seed)
            yield from rows.at_equal_rates(values[TRAINED], groups, fired, edges)


def judge_scores(
    judged: Mapping[str, Sequence[Judged]], samples: Mapping[str, Sequence[FeatureSample]]
) -> Iterator[Score]:
    """Yield scores of the judged latents.

    Args:
        judged: by condition, results of each SAE.
        samples: by condition, sampled latents of each SAE.
    """
    for rows in _OF_JUDGE:
        yield from rows.of_conditions(
            {
                name: [
                    its.of(rows.measure, sample.overall)
                    for its, sample in zip(each, samples[name], strict=True)
                ]
                for name, each in judged.items()
            }
        )
        pairs = list(zip(judged[TRAINED], samples[TRAINED], strict=True))
        yield from rows.of_samples(
            {
                name: [its.of(rows.measure, sample.groups[name]) for its, sample in pairs]
                for name in samples[TRAINED][0].groups
            }
        )


def _values(rules: FeatureRules) -> dict[str, Floats]:
    """Return measures [m] by name; NaN for latents that do not fire in both halves."""
    silent, kinds = np.isnan(rules.balanced_accuracy), np.array(rules.kinds)
    shares = {"explained by a rule": kinds != UNCLEAR}
    shares |= {f"explained by {kind}": kinds == kind for kind in KINDS}
    return {
        "rule balanced accuracy": rules.balanced_accuracy,
        **{name: np.where(silent, np.nan, its.astype(np.float64)) for name, its in shares.items()},
    }
