"""Simulated ranks that fail."""

import pytest
import torch

from saefast.train.ranks import Ranks, Simulated


def test_an_exchange_that_all_ranks_made_ends_although_one_fails_after_it() -> None:
    rounds = 300
    ended = 0

    def work(ranks: Ranks) -> None:
        nonlocal ended
        ranks.all_gather(torch.zeros(1), [(1,)] * ranks.size)
        if ranks.rank > 0:
            raise InterruptedError
        ended += 1

    for _ in range(rounds):
        with pytest.raises(InterruptedError):
            Simulated(3).run(work)
    assert ended == rounds


def test_ranks_that_wait_for_a_failed_one_are_stopped() -> None:
    stopped: list[int] = []

    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise ValueError("of rank 1")
        try:
            ranks.all_gather(torch.zeros(1), [(1,)] * ranks.size)
        finally:
            stopped.append(ranks.rank)

    group = Simulated(3)
    for _ in range(2):  # a group can be used again
        with pytest.raises(ValueError, match="of rank 1"):
            group.run(work)
    assert sorted(stopped) == [0, 0, 2, 2]
    assert group.calls == [0, 0, 0]
    assert [
        int(each[2])
        for each in group.run(lambda r: r.all_gather(torch.tensor([r.rank]), [(1,)] * 3))
    ] == [2, 2, 2]
