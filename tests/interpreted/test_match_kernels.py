"""Matching on the GPU path: float32 candidates, scored again in float64 by the kernels."""

import pytest
import torch
from helpers.strategies import normal

import saefast
from saefast.match import engines
from saefast.match.result import Matches
from saefast.ops import gpu


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, **options: object) -> Matches:
    """Return the matching of plain torch."""
    with monkeypatch.context() as patched:
        patched.setattr(gpu, "serves", lambda *a: False)
        patched.setattr(gpu, "has", lambda tensor: False)
        return matched(**options)


def matched(**options: object) -> Matches:
    a, b = normal((9, 20), 0, torch.float32), normal((40, 20), 1, torch.float32)
    return saefast.match_features(a, b, neighbours=4, progress=False, **options)


@pytest.mark.parametrize(
    "options", [{}, {"absolute": True}, {"one_to_one": True}], ids=["near", "absolute", "pairs"]
)
@pytest.mark.parametrize("doubtful", [False, True])
def test_pairs_equal_the_cpus(
    options: dict[str, object], doubtful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = engines._doubtful

    def doubt(values: torch.Tensor, last: torch.Tensor, error: float) -> torch.Tensor:
        seen.append(original(values, last, error))
        return torch.arange(len(values)) if doubtful else seen[-1]

    expected = on_the_cpu(monkeypatch, **options)
    monkeypatch.setattr(engines, "_doubtful", doubt)
    actual = matched(**options)
    assert seen
    assert torch.equal(actual.partner, expected.partner)
    torch.testing.assert_close(actual.similarity, expected.similarity)
    assert actual.certified == expected.certified
