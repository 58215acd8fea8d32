"""Input of score_stability: bad arguments raise."""

import pytest
import torch

import saefast
from saefast import score_stability


def score(dictionaries, **options):
    return score_stability(dictionaries, progress=False, **options)


ROWS = [torch.eye(3), torch.eye(3)]


MATCHED = saefast.match_all(ROWS, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold must be above 0 and at most 1, or 'null', got 0"),
        ({"threshold": 1.5}, ValueError, "threshold must be above 0 and at most 1"),
        ({"threshold": float("nan")}, ValueError, "threshold must be above 0 and at most 1"),
        ({"threshold": "nul"}, TypeError, "threshold must be a number or 'null', got 'nul'"),
        ({"match": "hungarian"}, ValueError, "match must be one of nearest, mutual, one_to_one"),
        ({"side": "left"}, ValueError, "side must be one of decoder, encoder, both"),
        ({"side": "encoder"}, ValueError, "has no W_enc"),
        ({"same_partner": True}, ValueError, "needs side='both'"),
        ({"confidence": 1.0}, ValueError, "confidence must be at least 0 and below 1"),
        ({"matches": {}}, ValueError, r"\(0, 1\) is missing; make them with match_all"),
        ({"matches": 3}, TypeError, "matches must be a result of match_all"),
        ({"matches": (MATCHED, MATCHED)}, TypeError, "matches must be a result of match_all"),
        (
            {"matches": MATCHED, "neighbours": 3},
            TypeError,
            "neighbours must not be given together with matches",
        ),
        (
            {"matches": MATCHED, "match": "one_to_one"},
            ValueError,
            "must be made with match='one_to_one', got a matching that is nearest",
        ),
        (
            {"alive": [torch.ones(3).bool()]},
            ValueError,
            "alive must have one tensor per dictionary",
        ),
        ({"alive": [torch.ones(3)] * 2}, TypeError, r"alive\[0\] must be a bool tensor"),
        ({"alive": [torch.ones(4).bool()] * 2}, ValueError, r"alive\[0\] must have shape \(3,\)"),
    ],
)
def test_bad_input_raises(options, error, message):
    with pytest.raises(error, match=message):
        score(ROWS, **options)


def test_matches_of_other_dictionaries_raise():
    with pytest.raises(ValueError, match=r"matches\[0, 1\].partner must have size 4"):
        score([torch.eye(4), torch.eye(4)[:2]], matches=MATCHED)
    with pytest.raises(ValueError, match=r"partner must be below 2, the size of dictionary 1"):
        score([torch.eye(3), torch.eye(3)[:2]], matches=MATCHED)
    with pytest.raises(ValueError, match="dictionaries must hold at least 2"):
        score([torch.eye(3)])
