"""delphi's own functions: parsing and scoring of answers, and windows in prompts.

The modules of delphi (eai-delphi 0.1.3, without dependencies) import packages that run models on a
GPU, which the compared functions do not need.
"""

import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from placeholders import without

from saefast.evaluation.explaining.judges.prompts import TokenChance, parsed_ratings
from saefast.evaluation.explaining.judges.scoring import area, balanced_accuracy

_UNUSED = ("vllm", "sentence_transformers", "blobfile", "plotly", "faiss", "tiktoken")

pytest.importorskip("delphi", reason="needs eai-delphi 0.1.3")
with warnings.catch_warnings(), without(*_UNUSED):
    warnings.simplefilter("ignore")
    import pandas as pd
    from delphi.latents.latents import ActivatingExample
    from delphi.latents.samplers import test as drawn_to_score
    from delphi.latents.samplers import train as drawn_to_explain
    from delphi.log.result_analysis import (
        compute_auc,
        compute_classification_metrics,
        compute_confusion,
    )
    from delphi.scorers import DetectionScorer


def classifier(shown: int, *, log_prob: bool = False) -> Any:
    return DetectionScorer(client=None, n_examples_shown=shown, log_prob=log_prob)


def test_answers_are_parsed_alike() -> None:
    drawn = np.random.default_rng(0)
    for count in (1, 2, 5, 14):
        for form in ("{}", "Here it is: {}", "{}\n", "```\n{}\n```"):
            answer = form.format(drawn.integers(0, 2, count).tolist())
            theirs, _ = classifier(count)._parse(answer)
            assert parsed_ratings(answer, count) == [float(each) for each in theirs]
    for answer in ("none of them", "[0, 1", "[0, 1, 1]", "[]"):
        with pytest.raises((ValueError, AssertionError)):
            classifier(2)._parse(answer)
        assert parsed_ratings(answer, 2) is None


def test_the_last_of_two_lists_is_the_answer() -> None:
    """If a model first repeats the example of the prompt, delphi reads the example."""
    answer = "As in [0, 1], the list is [1, 1]"
    assert classifier(2)._parse(answer)[0] == [False, True]
    assert parsed_ratings(answer, 2) == [1.0, 1.0]


def test_a_last_prompt_with_fewer_windows_is_parsed() -> None:
    """A prompt with fewer windows than the others loses its answers in delphi."""
    with pytest.raises(AssertionError):
        classifier(5)._parse("[0, 1, 1]")
    assert parsed_ratings("[0, 1, 1]", 3) == [0.0, 1.0, 1.0]


def test_probabilities_match_the_tokens() -> None:
    drawn = np.random.default_rng(1)
    odds = drawn.normal(0, 3, 8)
    answers = (odds > 0).astype(int)
    tokens = ["["]
    for digit in answers:
        tokens += [str(digit), ", "]
    tokens[-1] = "]"
    chances, theirs, place = [], [], 0
    for token in tokens:
        alternatives = {token: 0.0}
        if token.isdigit():
            one = -math.log1p(math.exp(-odds[place]))
            alternatives = {"1": one, "0": one - odds[place]}
            if place % 2:
                alternatives |= {" 1": -6.0, "maybe": -2.0}
            place += 1
        chances.append(TokenChance(token, alternatives))
        listed = [SimpleNamespace(token=t, logprob=p) for t, p in alternatives.items()]
        theirs.append(SimpleNamespace(token=token, top_logprobs=listed))
    expected = classifier(8, log_prob=True)._parse("".join(tokens), theirs)[1]
    ours = parsed_ratings("".join(tokens), 8, chances)
    assert ours == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) == 8


def frame(labels: Any, ratings: Any) -> Any:
    known = ~np.isnan(ratings)
    return pd.DataFrame(
        {
            "activating": labels,
            "prediction": [
                bool(r > 0.5) if k else None for r, k in zip(ratings, known, strict=True)
            ],
            "probability": ratings,
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_equal_answers_agree(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    labels = drawn.random(40) < 0.4
    ratings = np.clip(drawn.normal(0.4 + 0.2 * labels, 0.3), 0, 1).round(2)
    ratings[ratings == 0.5] = 0.51  # undecided: counts half here, and as a yes in delphi
    table = frame(labels, ratings)
    theirs = compute_classification_metrics(compute_confusion(table))
    assert balanced_accuracy(labels, ratings) == pytest.approx(theirs["accuracy"], abs=1e-12)
    assert area(labels, ratings) == pytest.approx(compute_auc(table), abs=1e-12)


def test_answers_that_cannot_be_parsed_count_as_guesses() -> None:
    """They are dropped by delphi before it counts them, so that their number is always 0."""
    labels = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    ratings = np.array([1, np.nan, np.nan, 0, np.nan, np.nan])
    theirs = compute_confusion(frame(labels, ratings))
    assert theirs["failed_count"] == 0
    assert compute_classification_metrics(theirs)["accuracy"] == 1
    assert balanced_accuracy(labels, ratings) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("windows", "seen"), [(500, 12), (200, 20)])
def test_delphi_scores_with_windows_that_it_explains_with(windows: int, seen: int) -> None:
    """Both are from the same windows in delphi; in saefast they are from different documents."""
    examples = [
        ActivatingExample(tokens=torch.tensor([number]), activations=torch.ones(1))
        for number in range(windows)
    ]
    shown = drawn_to_explain(examples, 1.0, 40, "quantiles", n_quantiles=10)
    scored = drawn_to_score(examples, 1.0, 50, 10, "quantiles")
    assert (len(shown), len(scored)) == (40, 50)
    both = {int(each.tokens) for each in shown} & {int(each.tokens) for each in scored}
    assert len(both) == seen
