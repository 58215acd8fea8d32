"""Process of `bench ranks`, started by torchrun.

python -m bench.ranks_worker steps d m k n rounds      times steps
python -m bench.ranks_worker memory d m k n rounds     measures the memory of a training
"""

import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
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
from saefast.train.ranks.words import said, wait_for_all

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
    """Measure, and print the result on rank 0."""
    what, *sizes, rounds = sys.argv[1:]
    shape, ranks = Shape(*map(int, sizes)), Timed(world())
    facts = (_steps if what == "steps" else _memory)(shape, int(rounds), ranks)
    if ranks.rank == 0:
        print(json.dumps(facts))


def _memory(shape: Shape, steps: int, ranks: Ranks) -> dict[str, Any]:
    """Train into a folder, and return the largest memory of every process and a digest."""
    rows, _ = draw(Shape(shape.d, 1, 1, steps * shape.n))
    config = saefast.TrainConfig(
        shape.m, shape.k, seeds=(0,), batch_size=shape.n, tokens=steps * shape.n
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(said(ranks, folder)[0])
        saefast.train_saes(rows, config, out=out, ranks=ranks, progress=False, device="cpu")
        digest = hashlib.sha256()
        for path in sorted((out / "seed-0").glob("*.*")):
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        wait_for_all(ranks)
    # In kilobytes on Linux; of the process alone, with the libraries that it shares.
    peaks = said(ranks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"steps": steps, "peaks": peaks, "digest": digest.hexdigest()}


def _steps(shape: Shape, rounds: int, ranks: "Timed") -> dict[str, Any]:
    """Take steps, and return times, bytes and a digest of the weights."""
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
    return facts


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
