"""Division of the memory of a matching, and estimates of its time and memory."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from saefast import checks
from saefast.disk.tables import table_of
from saefast.match.engines import engine_for
from saefast.match.neighbours import block_rows
from saefast.unit_rows import UnitRows

if TYPE_CHECKING:
    import pyarrow as pa

LIST_ENTRY = 16
"""Bytes of a neighbour in a list: a float64 and an int64"""
ARC = 72
"""Additional bytes of a neighbour as an arc, while arcs are sorted into a graph and solved"""
_LISTS = 0.75  # share of the memory for lists and their arcs; the rest is for added arcs

_SAMPLE = (4096, 16_384)  # numbers of rows and others that the rate is measured on


class Division(NamedTuple):
    """Division of the memory of a matching."""

    neighbours: int
    """length of the neighbour lists"""
    lists: int
    """bytes of the lists of both sides, which are held during the whole matching"""
    rest: float
    """bytes for blocks during the neighbour search, and for arcs afterwards"""


def divided(memory: float, rows: int, columns: int, neighbours: int, solved: bool) -> Division:
    """Divide the memory of a matching between neighbour lists and the rest.

    If a one-to-one matching is `solved`, lists are shortened to fit. Shorter lists cost rounds;
    the result is the same.

    Args:
        memory: bytes of the matching.
        rows: number of alive features of the first dictionary.
        columns: number of alive features of the second dictionary.
        neighbours: requested length of the lists.
        solved: whether a one-to-one matching is solved.

    Returns:
        The division.
    """
    k = min(neighbours, rows, columns) if solved else neighbours
    if solved:
        k = max(1, min(k, int(_LISTS * memory / ((rows + columns) * (LIST_ENTRY + ARC)))))
    lists = (rows + columns) * k * LIST_ENTRY
    return Division(k, lists, max(0.0, memory - lists))


def arcs_in(memory: float) -> int:
    """Return the number of arcs that fit in so many bytes."""
    return int(memory / ARC)


@dataclass(frozen=True, kw_only=True)
class MatchPlan:
    """Estimated memory and time of matching two dictionaries with m features of width d each."""

    m: int
    """number of features of each dictionary"""
    d: int
    """width of the features"""
    neighbours: int
    """length of the neighbour lists: as requested, or as much as memory allows"""
    blocks: int
    """number of blocks of each dictionary; each is compared with each block of the other"""
    block_rows: int
    """number of features in a block"""
    lists_gb: float
    """gigabytes of the neighbour lists of both dictionaries"""
    solver_gb: float
    """gigabytes of the arcs of a one-to-one matching, 0 for nearest features"""
    blocks_gb: float
    """gigabytes of the blocks of both dictionaries"""
    dictionaries_gb: float
    """gigabytes of both dictionaries in float32, which may stay on disk"""
    flops: float
    """multiplications and additions of all dot products, from both sides"""
    pairs_per_second: float
    """rate of comparing pairs of features, measured on this machine at this width"""
    seconds: float
    """time of the neighbour search; a one-to-one matching adds a few times the time of a sort"""

    def to_table(self) -> "pa.Table":
        """Return the plan as a pyarrow table with one row."""
        return table_of([vars(self)])

    def sentences(self) -> str:
        """Return the plan as text."""
        total = self.lists_gb + max(self.solver_gb, self.blocks_gb)
        return (
            f"{self.m:,} features of width {self.d} against as many: {self.blocks} x {self.blocks} "
            f"blocks of {self.block_rows:,}, lists of {self.neighbours}\nmemory: {total:.2f} GB "
            f"({self.lists_gb:.2f} lists, with {self.blocks_gb:.2f} blocks, then "
            f"{self.solver_gb:.2f} solver) in addition to {self.dictionaries_gb:.2f} GB of "
            f"dictionaries, which may be mapped from disk\nwork: {self.flops:.2e} FLOP; at "
            f"{self.pairs_per_second:.2e} pairs/s, measured now, {_duration(self.seconds)} to find "
            f"neighbours{', before the matching itself' if self.solver_gb else ''}"
        )


def plan_matching(
    m: int,
    d: int,
    *,
    neighbours: int = 64,
    one_to_one: bool = True,
    absolute: bool = False,
    backend: str = "auto",
    memory: float = 4.0,
) -> MatchPlan:
    """Estimate memory and time of matching two dictionaries on this machine.

    The rate is measured on random directions.

    Args:
        m: number of features of each dictionary.
        d: width of the features.
        neighbours: length of the neighbour lists of `one_to_one`.
        one_to_one: whether to match one to one, or to find the nearest features only.
        absolute: whether opposite directions count as similar.
        backend: engine of the neighbour search, as for `match_features`.
        memory: gigabytes of memory, as for `match_features`.

    Returns:
        The plan; `sentences()` formats it as text.
    """
    for name, value in (("m", m), ("d", d), ("neighbours", neighbours)):
        checks.whole(name, value, 1)
    share = divided(memory * 1e9, m, m, neighbours if one_to_one else 1, one_to_one)
    k = share.neighbours
    rows = min(block_rows(d, share.rest / 2), m)
    rate = _pairs_per_second(m, d, k, absolute, backend)
    return MatchPlan(
        m=m,
        d=d,
        neighbours=k,
        blocks=-(-m // rows),
        block_rows=rows,
        lists_gb=share.lists / 1e9,
        solver_gb=(2 * m * k * ARC if one_to_one else 0) / 1e9,
        blocks_gb=min(share.rest, 2 * 4 * 8 * m * d) / 1e9,
        dictionaries_gb=2 * 4 * m * d / 1e9,
        flops=2 * 2.0 * m * m * d,
        pairs_per_second=rate,
        seconds=2.0 * m * m / rate,
    )


def _pairs_per_second(m: int, d: int, k: int, absolute: bool, backend: str) -> float:
    generator = torch.Generator("cpu").manual_seed(0)
    few, many = (min(size, m) for size in _SAMPLE)
    x, others = (
        UnitRows.of(
            torch.randn(size, d, generator=generator, dtype=torch.float32, device="cpu"),
            "decoder",
            "sample",
        )
        for size in (few, many)
    )
    k = min(k, many)
    find = engine_for(backend, absolute, x, others, k).prepare(others.block(0, many), None)
    sample = x.block(0, few)
    find(sample, k)
    start = time.perf_counter()
    find(sample, k)
    return few * many / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
