"""Results print as one line, for any content."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import saefast
from saefast.types import brief


class Point(NamedTuple):
    x: float
    near: Tensor | None = None

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True)
class Found:
    points: tuple[Point, ...]
    each: tuple[Tensor, ...]
    names: tuple[str, ...]
    by_name: dict[str, Tensor]
    hidden: Tensor = field(repr=False)

    __repr__ = brief


def test_sizes_are_printed_instead_of_numbers() -> None:
    rows = torch.ones(3, 2)
    assert repr(Point(1 / 3)) == "Point(x=0.333333)"
    assert repr(Point(1.0, rows)) == "Point(x=1, near=float32[3, 2])"
    found = Found((Point(1.0),) * 9, (rows.bool(),) * 2, ("a", "b"), {"sum": rows.sum()}, rows)
    assert repr(found) == (
        "Found(points=<9 Point>, each=2 x bool[3, 2], names=['a', 'b'], by_name={'sum': 6})"
    )
    many = Found((), tuple(rows[:i] for i in range(9)), (), dict.fromkeys(map(str, range(9))), rows)
    assert repr(many).endswith("float32[3, 2], ...], names=[], by_name=<9 entries>)")


def test_results_fit_on_a_screen() -> None:
    rows = [torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]
    stability = saefast.score_stability(rows)
    results = [
        stability,
        saefast.match_features(rows[0], rows[1], one_to_one=True),
        saefast.measure_overlap(rows[0], rows[1], progress=False),
        saefast.fit_subspaces(rows, stability, progress=False),
        saefast.find_clusters(stability),
        saefast.pool_features(rows, stability, progress=False),
        saefast.SAE(8, 50, k=3, seed=0).encode(rows[0]),
    ]
    for result in results:
        assert repr(result).startswith(f"{type(result).__name__}(")
        assert len(repr(result)) < 800
        assert "tensor(" not in repr(result)
