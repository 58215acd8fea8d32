"""A few default steps at one shape, for tools that observe a process from outside."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu.contest import Contest
from bench.gpu.steps import default_step
from bench.gpu.worker import Item
from bench.shapes import gpu_shape


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the steps."""

    def run() -> list[dict[str, Any]]:
        contest = Contest(gpu_shape(argument))
        step = default_step(contest)
        for _ in range(2):
            step(contest.x)
        torch.cuda.synchronize()
        return []

    yield Item(f"step {argument}", run)
