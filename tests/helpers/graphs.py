"""Graphs of rows and columns, and the proof that an assignment on one of them is the best."""

import pytest
import torch
from helpers.strategies import generator
from torch import Tensor

from bench.match_kinds import best_value
from saefast.match.assignment import Assignment, Graph


def random_graph(rows: int, columns: int, arcs: int, coarse: bool, seed: int) -> Graph:
    random = generator(seed)
    key = torch.randint(rows * columns, (arcs,), generator=random).sort().values
    similarity = torch.randn(arcs, generator=random, dtype=torch.float64)
    similarity = similarity.round() if coarse else similarity
    row_start = torch.searchsorted(key, torch.arange(rows + 1) * columns)
    return Graph(row_start, (key % columns).int(), similarity, columns)


def dense(graph: Graph) -> Tensor:
    """Return [rows, columns], -infinity where there is no arc."""
    rows = len(graph.row_start) - 1
    row = torch.arange(rows).repeat_interleave(graph.row_start.diff())
    similarity = torch.full((rows * graph.columns,), -torch.inf, dtype=torch.float64)
    place = row * graph.columns + graph.column
    return similarity.scatter_reduce(0, place, graph.similarity, "amax").view(rows, -1)


def assert_best(graph: Graph, floor: float, found: Assignment) -> None:
    """Assert a feasible assignment whose value equals its bound and scipy's."""
    similarity = dense(graph)
    u, v, partner = found.row_price, found.column_price, found.partner
    assert found.finished
    assert (u[:, None] + v >= similarity - 1e-12).all()
    assert (u >= floor).all()
    assert (v >= 0).all()
    paired = partner >= 0
    assert len(partner[paired].unique()) == int(paired.sum())
    chosen = similarity[paired, partner[paired]]
    worth = float(chosen.sum()) + floor * int((~paired).sum())
    assert worth == pytest.approx(float(u.sum() + v.sum()), rel=1e-9, abs=1e-9)
    known = similarity.clamp(min=-1e3)
    assert worth == pytest.approx(best_value(known, floor) + floor * len(u), rel=1e-9, abs=1e-9)
