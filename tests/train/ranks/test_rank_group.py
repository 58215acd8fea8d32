"""Exchanges of processes, seen from one that is alone in its group."""

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import saefast
from saefast.train.ranks.processes import Torch, timeout


@pytest.fixture
def rank() -> Iterator[Torch]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Torch()
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_tensors_of_an_exchange_outlive_it(
    rank: Torch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of gloo must not be the last to release them, since it needs the interpreter."""
    used: list[weakref.ref[torch.Tensor]] = []
    real = dist.all_to_all_single

    def recording(*arguments: Any) -> None:
        used.extend(weakref.ref(tensor) for tensor in arguments[:2])
        real(*arguments)

    monkeypatch.setattr(dist, "all_to_all_single", recording)
    (got,) = rank.all_to_all([torch.arange(3.0)], [(3,)])
    assert got.tolist() == [0, 1, 2]
    assert [reference() is not None for reference in used] == [True, True]


def test_a_rank_leaves_the_group_after_reporting_its_failure(rank: Torch) -> None:
    rank.fail(KeyboardInterrupt())
    assert not dist.is_initialized()
    rank.fail(ValueError("again"))  # the group has ended: nothing is sent


ENDING = """
import atexit
import os
import torch
import torch.distributed as dist
from saefast import SAE, FusedStep
from saefast.train.ranks.processes import Torch

def gloo():
    tasks = (f"/proc/self/task/{task}/comm" for task in os.listdir("/proc/self/task"))
    return sum("gloo" in open(task).read() for task in tasks) > 0

atexit.register(lambda: print("at the end:", gloo(), dist.is_initialized()))
Torch()
FusedStep(SAE(8, 32, k=2), lr=0.01)(torch.randn(4, 8))
print("before:", gloo(), dist.is_initialized())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_the_threads_of_the_group_end_before_the_interpreter(tmp_path: Path) -> None:
    """One of them that releases a tensor later aborts the process, which depends on timing.

    The step imports modules of torch that keep the default group, if there is one by then.
    """
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        cwd=tmp_path,
        env=os.environ | one,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["before: True True", "at the end: False False"]


@pytest.mark.parametrize(
    ("given", "seconds"), [("", 120.0), ("3.5", 3.5), ("0", None), ("inf", None), ("soon", None)]
)
def test_the_environment_sets_the_patience(
    given: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEFAST_RANKS_TIMEOUT", given)
    if seconds is None:
        with pytest.raises(
            ValueError, match=f"must be a positive number of seconds, got '{given}'"
        ):
            timeout()
    else:
        assert timeout() == seconds


def test_no_other_module_uses_torch_distributed() -> None:
    package = Path(saefast.__file__).parent
    users = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"torch\.distributed|torch import distributed", path.read_text())
    ]
    assert users == ["train/ranks/processes.py"]
