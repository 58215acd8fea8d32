"""Process of `bench ranks`, started by torchrun: python -m bench.ranks_worker d m k n rounds."""

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import saefast
from bench.cases import Shape, draw
from saefast.train.config import TrainConfig
from saefast.train.planning.exchanges import step_exchanges
from saefast.train.ranks.group import Ranks
from saefast.train.ranks.processes import world

_FIRST = 2  # steps that are not counted


class Timed:
    """Ranks whose exchanges are counted, and timed apart from the wait for the slowest rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self.rank, self.size = ranks, ranks.rank, ranks.size
        self.timing = False
        self.waiting = self.exchange = 0.0
        self.received = self.calls = 0

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Any]) -> list[Tensor]:
        """See `Ranks`."""
        begun = time.perf_counter()
        if self.timing:
            dist.barrier()
        met = time.perf_counter()
        got = self._ranks.all_to_all(parts, shapes)
        self.waiting += met - begun
        self.exchange += time.perf_counter() - met
        self.calls += 1
        self.received += sum(part.nbytes for sender, part in enumerate(got) if sender != self.rank)
        return got

    def all_gather(self, part: Tensor, shapes: Sequence[Any]) -> list[Tensor]:
        """See `Ranks`."""
        return self.all_to_all([part] * self.size, shapes)

    def fail(self, error: BaseException) -> None:
        """See `Ranks`."""
        self._ranks.fail(error)


def main() -> None:
    """Take steps, and print times, bytes and a digest of the weights on rank 0."""
    *sizes, rounds = map(int, sys.argv[1:])
    shape, ranks = Shape(*sizes), Timed(world())
    x, _ = draw(shape)
    sae = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0)
    step = saefast.FusedStep(sae, lr=1e-3, ranks=ranks)
    whole = [_seconds(step, x) for _ in range(_FIRST + rounds)][_FIRST:]
    facts: dict[str, Any] = {"ms": round(statistics.median(whole) * 1e3, 3), "rounds": rounds}
    if ranks.size > 1:
        ranks.timing = True
        ranks.waiting = ranks.exchange = 0.0
        ranks.received = ranks.calls = 0
        timed = sum(_seconds(step, x) for _ in range(rounds))
        parts = {"waiting_ms": ranks.waiting, "exchange_ms": ranks.exchange}
        parts["compute_ms"] = timed - ranks.waiting - ranks.exchange
        facts |= {name: round(value / rounds * 1e3, 3) for name, value in parts.items()}
        facts |= {"received": ranks.received // rounds, "calls": ranks.calls // rounds}
        facts["planned"] = _planned(shape, ranks)
    else:
        for _ in range(rounds):
            step(x)
    facts["digest"] = _digest(step)
    if ranks.rank == 0:
        print(json.dumps(facts))


def _seconds(step: saefast.FusedStep, x: Tensor) -> float:
    begun = time.perf_counter()
    step(x)
    return time.perf_counter() - begun


def _planned(shape: Shape, ranks: Timed) -> int:
    """Return the bytes that are planned for a step, without those of a run."""
    config = TrainConfig(shape.m, shape.k, batch_size=shape.n, auxk=None, rules=saefast.Rules())
    parts = step_exchanges(config, shape.d, ranks.rank, ranks.size)
    return sum(part.received for name, part in parts.items() if name != "signals")


def _digest(step: saefast.FusedStep) -> str:
    """Return a digest of all weights and moments, gathered from all ranks."""
    digest = hashlib.sha256()
    for name, value in sorted(step.state_dict().items()):
        whole = value if step.share is None else step.share.whole(name, value)
        digest.update(name.encode() + whole.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
