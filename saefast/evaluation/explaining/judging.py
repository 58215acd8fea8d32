"""Judgement of the explanations of sampled latents, compared with other latents' explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saefast.evaluation.explaining.contexts import Booleans, Integers, TokenText
from saefast.evaluation.explaining.examples import SILENT_KINDS, Examples, ScoringWindows
from saefast.evaluation.explaining.explained import Explained
from saefast.evaluation.explaining.judges import Explanation, Judge, Question, Window
from saefast.evaluation.explaining.judges.calibration import known_questions
from saefast.evaluation.explaining.judges.scoring import score
from saefast.evaluation.explaining.rule_reader import Rule
from saefast.evaluation.explaining.sample import FeatureSample
from saefast.evaluation.intervals import Floats
from saefast.types import brief

WELL_EXPLAINED = 0.7
"""Detection above which a latent counts as interpretable in arXiv:2602.14111"""

MEASURES = (
    *("specificity", "detection", f"detection above {WELL_EXPLAINED}", "detection shuffled"),
    *(f"detection, silent: {kind}" for kind in SILENT_KINDS),
    *("fuzzing", "unparsed"),
)
"""Measures of a judged latent"""

_ALIKE = 6  # sampled latents of similar firing rate among which explanations are exchanged
_ORDER = 0x0DE5  # separates these random numbers from other uses of a latent's number
TYPICAL = "a description of about twenty words " * 3
"""Text with the length of an explanation, for estimates of costs"""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of sampled latents of one SAE."""

    latents: Integers
    """[sampled] indices of the latents, ascending"""
    explanations: list[Explanation]
    """[sampled] explanation of each latent"""
    values: dict[str, Floats]
    """by measure, [sampled]; NaN where it could not be measured"""

    __repr__ = brief

    def of(self, measure: str, latents: Integers) -> Floats:
        """Return a measure of given latents, [latents]."""
        return self.values[measure][np.searchsorted(self.latents, latents)]


class _Asked(NamedTuple):
    """Questions on one latent: their indices in the list of all questions."""

    detection: slice
    shuffled: slice
    """the same windows with another latent's explanation"""
    fuzzing: slice
    kinds: NDArray[np.str_]
    """[windows] kind of each silent window, "" for firing ones"""
    marks: Booleans
    """[fuzzing questions] whether the marks are right"""


class Examination:
    """Questions on sampled latents of one SAE.

    Args:
        latents: [sampled] indices of the latents, ascending.
        fired: [m] number of rows on which each latent fires.
        examples: source of windows of the SAE's latents.
    """

    def __init__(self, latents: Integers, fired: Integers, examples: Examples) -> None:
        self.latents, self._fired, self._examples = latents, fired, examples
        self._windows = [examples.scoring(latent) for latent in latents.tolist()]

    def explaining(self) -> list[list[Window]]:
        """Return the explaining windows of each latent."""
        return [self._examples.explaining(latent) for latent in self.latents.tolist()]

    def questions(
        self, explanations: Sequence[Explanation], questions: list[Question]
    ) -> list[_Asked]:
        """Append questions on whether each latent's explanation, and another's, fit its windows.

        Args:
            explanations: [sampled] explanation of each latent.
            questions: list to append to.

        Returns:
            For each latent the indices of its questions.
        """
        others = self._others(explanations)
        return [
            _ask(windows, own, other, questions, np.random.default_rng([_ORDER, latent]))
            for windows, own, other, latent in zip(
                self._windows, explanations, others, self.latents.tolist(), strict=True
            )
        ]

    def judged(
        self,
        judge: Judge,
        explanations: Sequence[Explanation],
        asked: Sequence[_Asked],
        ratings: Floats,
    ) -> Judged:
        """Compute the scores of all latents from the ratings of all questions."""
        rows = [_scores(judge, each, ratings) for each in asked]
        values = {
            name: np.array([row[name] for row in rows], dtype=np.float64) for name in MEASURES
        }
        return Judged(latents=self.latents, explanations=list(explanations), values=values)

    def _others(self, explanations: Sequence[Explanation]) -> list[Explanation]:
        """Return for each latent the explanation of another that fires about as often.

        It is empty where all candidates have the same explanation.
        """
        order = np.lexsort((self.latents, self._fired[self.latents]))
        others = [Explanation("")] * len(order)
        for part in np.array_split(order, max(len(order) // _ALIKE, 1)):
            places = part.tolist()
            for at, place in enumerate(places):
                following = [explanations[its] for its in places[at + 1 :] + places[:at]]
                own = explanations[place].text
                others[place] = next((o for o in following if o.text != own), Explanation(""))
        return others


def judge_all(
    judge: Judge,
    subjects: Mapping[str, Sequence[Explained]],
    text: TokenText,
    samples: Mapping[str, Sequence[FeatureSample]],
    seed: int,
    *,
    rules_only: bool = False,
) -> dict[str, list[Judged]]:
    """Let a judge rate the sampled latents of all SAEs, with all questions in one call.

    Args:
        judge: judge that rates explanations, and writes them if it can; otherwise rules are rated.
        subjects: SAEs by condition.
        text: text of the encoded rows.
        samples: sampled latents of each SAE.
        seed: seed of the choice of windows.
        rules_only: rate the rules even if the judge writes explanations.

    Returns:
        For each condition the ratings of its SAEs.
    """
    exams = _exams(subjects, text, samples, seed)
    written = judge.explains and not rules_only
    explanations = _written(judge, exams) if written else _of_rules(exams, subjects)
    questions: list[Question] = []
    asked = [
        exam.questions(its, questions) for (_, exam), its in zip(exams, explanations, strict=True)
    ]
    ratings = judge.rate(questions)
    judged: dict[str, list[Judged]] = {name: [] for name in subjects}
    for (name, exam), its, places in zip(exams, explanations, asked, strict=True):
        judged[name].append(exam.judged(judge, its, places, ratings))
    return judged


def judging_cost(
    judge: Judge,
    subjects: Mapping[str, Sequence[Explained]],
    text: TokenText,
    samples: Mapping[str, Sequence[FeatureSample]],
    tokenizer: Any,
    seed: int,
) -> str:
    """Return a sentence on the cost of `judge_all` and the calibration.

    Args:
        judge: judge; no request is sent.
        subjects: SAEs by condition.
        text: text of the encoded rows.
        samples: sampled latents of each SAE.
        tokenizer: tokenizer of the calibration.
        seed: seed of the choice of windows.
    """
    exams = _exams(subjects, text, samples, seed)
    known = known_questions(tokenizer, seed)
    questions = [*known.right, *known.swapped]
    for number, (_, exam) in enumerate(exams):
        # The explanations have typical length and differ from each other.
        exam.questions(
            [Explanation(f"{TYPICAL}{number}.{latent}") for latent in exam.latents], questions
        )
    explains = judge.explains
    windows = [its for _, exam in exams for its in exam.explaining()] if explains else []
    cost = judge.cost(windows, questions)
    latents = sum(len(exam.latents) for _, exam in exams)
    return (
        f"judge {judge.name} would get about {cost.in_words()} for {latents} latents of "
        f"{len(exams)} SAEs and its calibration; it was not called"
    )


def _exams(
    subjects: Mapping[str, Sequence[Explained]],
    text: TokenText,
    samples: Mapping[str, Sequence[FeatureSample]],
    seed: int,
) -> list[tuple[str, Examination]]:
    return [
        (name, Examination(sample.all, subject.firings.fired, subject.examples(text, seed)))
        for name, each in subjects.items()
        for subject, sample in zip(each, samples[name], strict=True)
    ]


def _written(judge: Judge, exams: Sequence[tuple[str, Examination]]) -> list[list[Explanation]]:
    """Return the explanations that the judge writes for sampled latents of each SAE."""
    written = iter(judge.explain([its for _, exam in exams for its in exam.explaining()]))
    return [[Explanation(next(written)) for _ in exam.latents] for _, exam in exams]


def _of_rules(
    exams: Sequence[tuple[str, Examination]], subjects: Mapping[str, Sequence[Explained]]
) -> list[list[Explanation]]:
    """Return the rules of sampled latents of each SAE as explanations."""
    rules = [subject.rules.rules for each in subjects.values() for subject in each]
    return [
        [_by_rule(its[latent]) for latent in exam.latents.tolist()]
        for (_, exam), its in zip(exams, rules, strict=True)
    ]


def _by_rule(rule: Rule | None) -> Explanation:
    return Explanation("" if rule is None else rule.text, rule)


def _ask(
    windows: ScoringWindows,
    own: Explanation,
    other: Explanation,
    questions: list[Question],
    generator: np.random.Generator,
) -> _Asked:
    """Append the questions on one latent to a list, in random order, and return their indices.

    The order is random because a judge may see several windows at once, which must not all be
    firing ones.

    Returns:
        Indices of the questions in the list, by kind.
    """
    shown = [(window, "") for window in windows.firing]
    shown += [(window, kind) for kind, each in windows.silent.items() for window in each]
    marked = [
        (window, marks, label)
        for window, right, wrong in zip(
            windows.firing, windows.right_marks, windows.wrong_marks, strict=False
        )
        for marks, label in ((right, True), (wrong, False))
        if len(wrong)
    ]
    shown = [shown[place] for place in generator.permutation(len(shown))]
    marked = [marked[place] for place in generator.permutation(len(marked))]
    first = len(questions)
    questions += [Question(own, window) for window, _ in shown]
    second = len(questions)
    questions += [Question(other, window) for window, _ in shown]
    third = len(questions)
    questions += [Question(own, window, marks) for window, marks, _ in marked]
    return _Asked(
        detection=slice(first, second),
        shuffled=slice(second, third),
        fuzzing=slice(third, len(questions)),
        kinds=np.array([kind for _, kind in shown]),
        marks=np.array([label for _, _, label in marked], dtype=bool),
    )


def _scores(judge: Judge, asked: _Asked, ratings: Floats) -> dict[str, float]:
    kinds, labels = asked.kinds, asked.kinds == ""
    right, shuffled = ratings[asked.detection], ratings[asked.shuffled]
    detection, by_chance = score(judge, labels, right), score(judge, labels, shuffled)
    of_kinds = {
        f"detection, silent: {kind}": score(
            judge, labels[labels | (kinds == kind)], right[labels | (kinds == kind)]
        )
        for kind in SILENT_KINDS
    }
    above = float(detection > WELL_EXPLAINED) if not np.isnan(detection) else float("nan")
    every = np.concatenate([right, shuffled, ratings[asked.fuzzing]])
    return {
        "specificity": detection - by_chance,
        "detection": detection,
        "detection shuffled": by_chance,
        f"detection above {WELL_EXPLAINED}": above,
        "fuzzing": score(judge, asked.marks, ratings[asked.fuzzing]),
        **of_kinds,
        "unparsed": float(np.isnan(every).mean()) if len(every) else float("nan"),
    }
