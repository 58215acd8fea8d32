"""Contestants that are timed on a GPU at one shape, by case: saefast, torch, torch.compile."""

from collections.abc import Callable, Iterator
from typing import Any

from bench.gpu.contest import Contest
from bench.gpu.decodes import decodes
from bench.gpu.encodes import batches, encodes, thresholds
from bench.gpu.steps import steps, updates, variants
from bench.gpu.times import Contestant, ceilings_item, ceilings_of, raced
from bench.gpu.trainings import trainings
from bench.gpu.worker import Item
from bench.shapes import GPU_SHAPES, gpu_shape

CASES: dict[str, Callable[[Contest], Iterator[Contestant]]] = {
    "step": steps,
    "encode": encodes,
    "variants": variants,
    "threshold": thresholds,
    "batch_topk": batches,
    "decode": decodes,
    "update": updates,
}


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the contestants of all cases at a shape, the most important case first."""
    shape = gpu_shape(argument)
    ceilings = ceilings_of(facts)
    yield ceilings_item(ceilings)
    contest = Contest(shape)
    cases = CASES if shape != GPU_SHAPES["decode"] else {"decode": decodes}
    for number, (case, contestants) in enumerate(cases.items()):
        yield from raced(shape, contest.unit, case, contestants(contest), ceilings)
        if number == 0 and "step" in cases:
            yield from trainings(contest, ceilings)
