"""Names below an axis do not overlap, stay within the figure, and numbers are never cut."""

import itertools

import pytest

from saefast.report.labels import Label, placed

WIDTH = 340.0
LETTER = 6.8


def half(label: Label) -> float:
    return LETTER * len(label.words) / 2


def at_equal_distances(names: list[str]) -> list[tuple[float, str]]:
    step = 280 / len(names)
    return [(46 + step * (n + 0.5), name) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "lines", "cut"),
    [
        (["topk", "relu"], 1, False),
        (["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"], 2, False),
        (["EleutherAI/pythia-160m"] * 4, 2, True),
        (["16,384"] * 30, 1, False),
        (["a-long-name-of-a-site"] * 30, 1, True),
        (["x" * 60], 1, True),
    ],
)
def test_names_fit(names: list[str], lines: int, cut: bool) -> None:
    labels = placed(at_equal_distances(names), WIDTH)
    assert labels
    assert {label.line for label in labels} == set(range(lines))
    assert any(label.words != label.whole for label in labels) == cut
    for line in range(lines):
        mine = [label for label in labels if label.line == line]
        ends = [(each.x - half(each), each.x + half(each)) for each in mine]
        assert all(left[1] < right[0] for left, right in itertools.pairwise(ends))
        assert ends[0][0] >= -1e-9
        assert ends[-1][1] <= WIDTH + 1e-9
