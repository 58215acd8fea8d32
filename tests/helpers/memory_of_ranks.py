"""Memory by which processes grow in a training.

python -m helpers.memory_of_ranks d m k n steps folder

Each of the processes that torchrun started prints its rank, and the largest growth in bytes of its
resident memory from before the first weight is drawn to the files of the finished SAE. What was
there before, such as the libraries and the rows, does not count.
"""

import resource
import sys
from pathlib import Path

import torch
from helpers.checkout import CHECKOUT
from helpers.rank_processes import torchrun

from saefast import TrainConfig, train_saes
from saefast.train.ranks.processes import world


def grown_memory(size: int, config: TrainConfig, d: int, folder: Path) -> list[int]:
    """Return the largest growth in bytes of each of `size` processes that train one SAE."""
    numbers = map(str, (d, config.latents, config.k, config.batch_size, config.steps))
    command = ("-m", "helpers.memory_of_ranks", *numbers, str(folder))
    done = torchrun(size, *command, cwd=CHECKOUT / "tests")
    assert done.returncode == 0, done.stderr
    grown = dict(map(int, line.split()) for line in done.stdout.splitlines())
    return [grown[rank] for rank in range(size)]


def main() -> None:
    """Train, and print the growth."""
    d, m, k, n, steps = map(int, sys.argv[1:6])
    torch.set_num_threads(1)
    config = TrainConfig(m, k, batch_size=n, tokens=steps * n, auxk=None)
    rows = torch.randn(steps * n, d, generator=torch.Generator().manual_seed(0))
    ranks = world()
    few = TrainConfig(64, 4, batch_size=64, tokens=640, auxk=None)
    train_saes(rows[:640], few, ranks=ranks, progress=False)  # imports what a training imports
    with Path("/proc/self/statm").open() as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    train_saes(rows, config, ranks=ranks, progress=False, out=sys.argv[6])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    sys.stdout.write(f"{ranks.rank} {grown}\n")  # in one piece, as ranks share the output
    sys.stdout.flush()


if __name__ == "__main__":
    main()
