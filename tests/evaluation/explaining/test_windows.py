"""Windows and questions of a judge, the sample of features, and estimates with intervals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.planted_text import planted, planted_truth, write_text

from saefast.evaluation.explaining.contexts import token_text
from saefast.evaluation.explaining.estimates import (
    Estimate,
    between,
    combined,
    equal_rate_difference,
    mean_of,
)
from saefast.evaluation.explaining.examples import SILENT_KINDS, Examples
from saefast.evaluation.explaining.judges import Explanation, Question, RulesJudge
from saefast.evaluation.explaining.judging import Examination
from saefast.evaluation.explaining.predicates import fold
from saefast.evaluation.explaining.sample import RATE_BINS, rate_bins, sample_features

CONTEXTS = 80


def test_windows_have_the_claimed_firings(tmp_path: Path) -> None:
    text = token_text(tmp_path / "store", write_text(tmp_path / "store", CONTEXTS))
    dots = np.array([piece.strip() == "." for piece in text.pieces(0, text.rows)])
    some = dots & (np.random.default_rng(1).random(text.rows) < 0.4)
    truth = [dots, *planted_truth(text).values(), some]
    firings = planted(truth)
    decoder = torch.eye(len(truth))
    decoder[-1, 0] = 1.0  # the neighbour of the last latent is the first one
    examples = Examples(text, firings, decoder, seed=0)
    latent = len(truth) - 1
    shown = examples.explaining(latent)
    assert len(shown) == 20
    assert len({window.first for window in shown}) == 20
    assert all(text.explaining[window.first] for window in shown)
    peaks = [float(window.strength.max()) for window in shown]
    assert peaks[:10] == sorted(peaks[:10], reverse=True)
    assert min(peaks[:10]) >= max(peaks[10:])
    found = examples.scoring(latent)
    every = [*found.firing, *(window for each in found.silent.values() for window in each)]
    assert len({window.first for window in every}) >= len(found.firing) + 7
    for window in every:
        assert not text.explaining[window.first]
        assert window.fires.tolist() == truth[latent][window.first : window.end].tolist()
    assert all(window.fires.any() for window in found.firing)
    assert list(found.silent) == list(SILENT_KINDS)
    for kind, each in found.silent.items():
        assert not any(window.fires.any() for window in each), kind
    assert found.silent["same token"]
    assert all("." in map(fold, window.pieces) for window in found.silent["same token"])
    assert all(truth[0][window.first : window.end].any() for window in found.silent["neighbour"])
    assert len(found.right_marks) == len(found.wrong_marks) > 0
    for window, right, wrong in zip(
        found.firing, found.right_marks, found.wrong_marks, strict=False
    ):
        assert window.fires[right].all()
        assert not window.fires[wrong].any()
        assert len(right) == len(wrong)


def test_explanations_are_shuffled_among_latents_of_similar_rate(tmp_path: Path) -> None:
    text = token_text(tmp_path / "store", write_text(tmp_path / "store", CONTEXTS))
    dots = np.array([piece.strip() == "." for piece in text.pieces(0, text.rows)])
    firings = planted([dots] * 13)
    fired = np.arange(13)[::-1]
    exam = Examination(np.arange(13), fired, Examples(text, firings, None, seed=0))
    explanations = [Explanation(f"latent {latent // 2}") for latent in range(13)]
    questions: list[Question] = []
    asked = exam.questions(explanations, questions)
    assert [its.detection.start for its in asked[1:]] == [its.fuzzing.stop for its in asked[:-1]]
    for latent, its in enumerate(asked):
        own = {question.explanation.text for question in questions[its.detection]}
        other = {question.explanation.text for question in questions[its.shuffled]}
        assert own == {f"latent {latent // 2}"}
        assert len(other) == 1
        (number,) = (int(text.split()[1]) for text in other)
        assert number != latent // 2
        assert abs(number - latent // 2) <= 3
        windows = [question.window for question in questions[its.shuffled]]
        assert windows == [question.window for question in questions[its.detection]]
    orders = [tuple(its.kinds.tolist()) for its in asked]
    assert len(set(orders)) > 5
    assert not any(all(kind == "" for kind in order[:20]) for order in orders)
    assert len({tuple(its.marks.tolist()) for its in asked}) > 5
    alike = exam.questions([Explanation("same")] * 13, questions)
    assert all(question.explanation.text == "" for question in questions[alike[0].shuffled])
    nothing = Examination(np.arange(0), fired, Examples(text, firings, None, seed=0))
    empty = nothing.judged(RulesJudge(), [], [], np.zeros(0))
    assert all(len(values) == 0 for values in empty.values.values())


def test_latents_that_fire_everywhere_have_no_scores(tmp_path: Path) -> None:
    text = token_text(tmp_path / "store", write_text(tmp_path / "store", CONTEXTS))
    firings = planted([np.ones(text.rows, dtype=bool)])
    examples = Examples(text, firings, None, seed=0)
    found = examples.scoring(0)
    assert [len(marks) for marks in found.right_marks] == [0] * 10
    assert [len(marks) for marks in found.wrong_marks] == [0] * 10
    exam = Examination(np.arange(1), firings.fired, examples)
    questions: list[Question] = []
    asked = exam.questions([Explanation("all")], questions)
    judged = exam.judged(RulesJudge(), [Explanation("all")], asked, np.ones(len(questions)))
    for measure in ("detection", "detection above 0.7", "specificity", "fuzzing"):
        assert np.isnan(judged.values[measure]).all(), measure


def test_groups_are_sampled_at_equal_rates() -> None:
    generator = np.random.default_rng(2)
    fired = generator.integers(1, 1000, 3000)
    likely = generator.random(3000) < fired / 1000
    groups = {"often": likely, "seldom": ~likely}
    sample = sample_features(np.ones(3000, dtype=bool), fired, groups, 100, seed=0)
    assert len(sample.overall) == 100
    bins = rate_bins(fired)
    each = [np.bincount(bins[its], minlength=RATE_BINS) for its in sample.groups.values()]
    assert (each[0] == each[1]).all()
    assert each[0].sum() == 50
    for name, mask in groups.items():
        assert mask[sample.groups[name]].all()
    counts = np.bincount(bins[sample.overall], minlength=RATE_BINS)
    assert counts.min() >= 9
    # Where one group has few latents of a rate, the others get as few.
    every = sample_features(np.ones(3000, dtype=bool), fired, groups, 6000, seed=0)
    each = [np.bincount(bins[its], minlength=RATE_BINS) for its in every.groups.values()]
    assert (each[0] == each[1]).all()
    assert 0 < each[0].min() < each[0].max()
    silent = sample_features(fired > 500, fired, {}, 100, seed=0)
    assert fired[silent.overall].min() > 500


def test_difference_at_equal_rate_by_hand() -> None:
    """Simpson's paradox: b is better in both bins, a has more of the good bin."""
    a, b = np.array([1.0] * 6 + [0.0] * 2 + [0.0] * 2), np.array([1.0, 1.0, 1.0, 0, 0, 0, 0, 0])
    bins_a, bins_b = np.array([1] * 8 + [0] * 2), np.array([1] * 2 + [0] * 6)
    found = equal_rate_difference(a, b, bins_a, bins_b)
    weights = [8 * 2 / 10, 2 * 6 / 8]
    by_hand = (weights[0] * (6 / 8 - 1) + weights[1] * (0 - 1 / 6)) / sum(weights)
    assert found.value == pytest.approx(by_hand)
    assert found.value < 0 < a.mean() - b.mean()
    nothing = equal_rate_difference(a, b, bins_a, bins_b + 5)
    assert nothing.n == 0
    assert np.isnan(combined([nothing]).value)


def test_intervals_of_estimates_cover() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        each = [mean_of(generator.normal(0.3, 1, 50)) for _ in range(3)]
        interval = combined(each)
        covered += interval.low <= 0.3 <= interval.high
    assert covered >= 0.93 * 400
    assert combined([Estimate(0.99, 0.1, 5)], most=1.0).high == 1.0
    pairs = between([Estimate(1.0, 0.3, 5), Estimate(3.0, 0.3, 5)], [Estimate(0.0, 0.4, 5)] * 2)
    assert [its.value for its in pairs] == [1.0, 3.0]
    assert pairs[0].error == pytest.approx(0.5)


@pytest.mark.parametrize("saes", [2, 4])
def test_intervals_cover_where_saes_differ_by_more_than_their_latents(saes: int) -> None:
    """With the quantile of a normal distribution, 67 % (of two SAEs) and 86 % (of four) cover."""
    generator = np.random.default_rng(saes)
    covered = 0
    for _ in range(400):
        means = generator.normal(0.3, 0.1, saes)
        interval = combined([mean_of(generator.normal(mean, 0.1, 100)) for mean in means])
        covered += interval.low <= 0.3 <= interval.high
    assert 0.92 * 400 <= covered <= 0.98 * 400


def test_strata_with_one_latent_do_not_narrow_intervals() -> None:
    assert combined([mean_of(np.array([0.4]))], least=0.0, most=1.0) == (0.4, 0.0, 1.0)
    generator = np.random.default_rng(4)
    bins_a, bins_b = np.arange(12) // 2, np.array([0, 0, 0, 0, 1, 2, 3, 4, 5])
    covered = 0
    for _ in range(400):
        a, b = generator.normal(0, 0.01, 12), generator.normal(0, 0.01, 9)
        found = combined([equal_rate_difference(a, b, bins_a, bins_b)])
        covered += found.low <= 0 <= found.high
    assert covered > 0.85 * 400  # few degrees of freedom: below 0.95
    alone = equal_rate_difference(a[:1], b[:1], bins_a[:1], bins_b[:1])
    assert combined([alone], least=-1.0).low == -1.0
