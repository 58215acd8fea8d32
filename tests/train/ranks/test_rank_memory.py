"""Memory of processes that train an SAE together: as planned, and divided by their number."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.memory_of_ranks import grown_memory

from saefast import TrainConfig
from saefast.train.planning.memory import rank_memory

WIDTH = 768
CONFIG = TrainConfig(49_152, 32, batch_size=1024, tokens=6 * 1024, auxk=None)
Grown = Callable[[int], list[int]]

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Return the memory by which each of a number of processes grows, measured once."""

    @functools.cache
    def measured(size: int) -> list[int]:
        return grown_memory(size, CONFIG, WIDTH, tmp_path_factory.mktemp("memory"))

    return measured


@pytest.mark.parametrize("size", [1, 2, 4])
def test_planned_memory_matches_processes(size: int, grown: Grown) -> None:
    """Within a fifth: memory that the allocator does not give back depends on the machine."""
    planned = [rank_memory(CONFIG, WIDTH, rank, size).peak for rank in range(size)]
    shares = [mine / expected for mine, expected in zip(grown(size), planned, strict=True)]
    assert all(0.8 < share < 1.2 for share in shares), shares


def test_each_of_four_processes_needs_at_most_three_tenths_of_the_memory_of_one(
    grown: Grown,
) -> None:
    """At 131,072 latents `bench ranks` measures the same, with the libraries of each process."""
    (alone,) = grown(1)
    shares = [mine / alone for mine in grown(4)]
    assert max(shares) <= 0.3, shares
