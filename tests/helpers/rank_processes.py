"""Ranks that are processes, forked from one that has imported saefast, so that they start fast.

They are connected as those of torchrun: by a store outside of the ranks, in the tests' process.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from saefast.cli import main
from saefast.train.seed_trainer import SeedTrainer

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["saefast.cli", "tyro", "torch.distributed.rendezvous", "torch._dynamo"]  # by the first op
)

SOON = 200.0
"""Seconds in which all ranks must end: they need a few on a machine that is not overloaded."""


EVERY = -1
"""Rank of a fault that all ranks have."""


class Fault(NamedTuple):
    """Fault of one rank just before or after it takes a step."""

    what: str
    """name of a fault in `FAULTS`"""
    rank: int
    step: int = 7
    after: bool = False


def _kill(trainer: SeedTrainer) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_in_an_exchange(trainer: SeedTrainer) -> None:
    """Kill the rank in the third exchange from now, after it has begun to send."""
    real, calls = dist.all_to_all_single, []

    def killing(*arguments: Any) -> None:
        calls.append(real(*arguments, async_op=len(calls) == 2))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    dist.all_to_all_single = killing


def _stop(trainer: SeedTrainer) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate(trainer: SeedTrainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _fill_disk(trainer: SeedTrainer) -> None:
    """Let the system refuse to write files of more than a thousand bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def _spoil(name: str, value: float = torch.nan) -> Callable[[SeedTrainer], None]:
    def spoil(trainer: SeedTrainer) -> None:
        trainer.step.state_dict()[name][3] = value

    return spoil


FAULTS: dict[str, Callable[[SeedTrainer], None]] = {
    "killed": _kill,
    "killed in an exchange": _kill_in_an_exchange,
    "stopped": _stop,
    "terminated": _terminate,
    "full disk": _fill_disk,
    "NaN in W_enc": _spoil("W_enc"),
    "NaN in W_dec": _spoil("W_dec"),
    "NaN in b_dec": _spoil("b_dec"),
    "infinity in a moment": _spoil("W_dec.second", torch.inf),
}


def torchrun(
    size: int, *command: str, cwd: Path, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script or module by several processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", str(restarts)]
    return subprocess.run(
        [*launch, "--nproc-per-node", str(size), *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


class RankProcesses:
    """Processes that run the command line of saefast together.

    Args:
        size: number of ranks.
        arguments: command line.
        folder: current folder of the processes, in which they leave their output.
        fault: fault of one of them; None: none.
        patience: seconds that a rank waits for another one.
        store_in_rank: whether the store is in rank 0, as without torchrun.
    """

    def __init__(
        self,
        size: int,
        arguments: Sequence[str],
        folder: Path,
        *,
        fault: Fault | None = None,
        patience: float = 60.0,
        store_in_rank: bool = False,
    ) -> None:
        with contextlib.chdir("/"):  # the checkout has a folder saefast/ without compiled kernels
            forkserver.ensure_running()
        self.folder, self.size = folder, size
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        port = self._store.port
        if store_in_rank:
            del self._store  # leaves the port to rank 0
        environment = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": str(not store_in_rank),
            "TORCHELASTIC_RESTART_COUNT": "0",
            "SAEFAST_RANKS_TIMEOUT": str(patience),
        }
        self._processes = [
            _FORKS.Process(
                target=_work,
                args=(environment | {"RANK": str(rank)}, list(arguments), str(folder), fault),
            )
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()
        self.pids = [process.pid for process in self._processes]

    @property
    def running(self) -> list[int]:
        """Return the ranks whose processes have not ended."""
        return [rank for rank, each in enumerate(self._processes) if each.is_alive()]

    def kill(self, rank: int) -> None:
        """Kill a rank and wait until it has ended."""
        self._processes[rank].kill()
        self._processes[rank].join()

    def ended(self, seconds: float, without: Sequence[int] = ()) -> list[int | None]:
        """Return the exit codes of all ranks but some, which must end within some seconds.

        Those that do not are killed, as are those that are left out.
        """
        end = time.monotonic() + seconds
        for rank, process in enumerate(self._processes):
            if rank not in without:
                process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank in self.running if rank not in without]
        for process in self._processes:
            process.kill()
            process.join()
        assert not late, f"ranks {late} did not end within {seconds} s; {self.printed()}"
        return [p.exitcode for rank, p in enumerate(self._processes) if rank not in without]

    def printed(self) -> str:
        """Return the output of all ranks."""
        return "\n".join(_output(self.folder, rank).read_text() for rank in range(self.size))

    @property
    def messages(self) -> list[str]:
        """Return the sentences that are printed for the user."""
        lines = self.printed().splitlines()
        return [line[line.index("saefast: ") :] for line in lines if "saefast: " in line]


def _output(folder: Path, rank: int) -> Path:
    return folder / f"output-{rank}.txt"


def _work(
    environment: dict[str, str], arguments: list[str], folder: str, fault: Fault | None
) -> None:
    """Run the command line in this process, which is one of the ranks."""
    os.environ.update(environment)
    os.chdir(folder)
    rank = int(environment["RANK"])
    output = os.open(_output(Path(folder), rank), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if fault is not None and fault.rank in (rank, EVERY):
        _inject(fault)
    code = main(arguments)
    sys.stderr.flush()
    sys.stdout.flush()
    sys.exit(code)


def _inject(fault: Fault) -> None:
    real = SeedTrainer.train

    def faulty(trainer: SeedTrainer, number: int, batch: Any) -> None:
        if fault.after:
            real(trainer, number, batch)
        if number == fault.step:
            FAULTS[fault.what](trainer)
        if not fault.after:
            real(trainer, number, batch)

    SeedTrainer.train = faulty  # type: ignore[method-assign]
