"""Optimal one-to-one assignment on a sparse graph of rows and columns."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.ops.cpu import native


class Graph(NamedTuple):
    """Arcs between rows and columns in compressed row format."""

    row_start: Tensor
    """[rows + 1] int64, index of the first arc of each row"""
    column: Tensor
    """[arcs] int32, column of each arc"""
    similarity: Tensor
    """[arcs] float64, finite"""
    columns: int
    """number of columns"""


class Assignment(NamedTuple):
    """Partners of the rows, with prices that prove the assignment optimal if it is `finished`."""

    partner: Tensor
    """[rows] int64, column of each row; -1 for none"""
    row_price: Tensor
    """[rows] float64, dual variables of the rows"""
    column_price: Tensor
    """[columns] float64, dual variables of the columns"""
    finished: bool
    """whether the solver ended within the time limit"""


def best_assignment(
    graph: Graph, floor: float, *, start: Assignment | None = None, seconds: float = math.inf
) -> Assignment:
    """Maximise the sum of similarities of pairs, plus `floor` for every row without a partner.

    `start` is an assignment on a subset of the arcs, which saves time and only affects which of
    several equal optima is found. See csrc/assignment.h for the properties of the prices.

    Returns:
        The assignment with its prices.
    """
    rows = len(graph.row_start) - 1
    partner = (
        torch.empty(rows, dtype=torch.int64, device="cpu")
        if start is None
        else start.partner.clone()
    )
    column_price = (
        torch.empty(graph.columns, dtype=torch.float64, device="cpu")
        if start is None
        else start.column_price.clone()
    )
    row_price = torch.empty(rows, dtype=torch.float64, device="cpu")
    finished = native.best_assignment(
        graph.row_start,
        graph.column,
        graph.similarity,
        floor,
        start is not None,
        seconds,
        partner,
        row_price,
        column_price,
    )
    return Assignment(partner, row_price, column_price, finished)
