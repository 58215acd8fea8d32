"""Runs of several processes, which torchrun starts, write the same files as one process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.rank_processes import SOON, Fault, RankProcesses, torchrun
from helpers.training_runs import (
    ROWS,
    SEVERAL,
    checkpoint_names,
    checkpoint_of,
    command,
    names_of,
    saved,
)
from helpers.worker_processes import children

COMMAND = ("-m", "saefast")

_BREAKING = """
import os, signal, sys
from saefast.cli import main
from saefast.train.seed_trainer import SeedTrainer

real = SeedTrainer.train

def breaking(trainer, number, batch):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and number == 7:
        {what}
    real(trainer, number, batch)

SeedTrainer.train = breaking
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rows, and a run of one process."""
    folder = tmp_path_factory.mktemp("command")
    torch.save(ROWS, folder / "rows.pt")
    subprocess.run([sys.executable, *COMMAND, *command("alone")], cwd=folder, check=True)
    return folder


SUMMARY = "trained 1 SAE on 2,000 rows each"


def test_the_command_writes_the_same_files_by_torchrun(folder: Path) -> None:
    done = torchrun(2, *COMMAND, *command("of-2"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(SUMMARY) == 1  # by rank 0 alone
    assert saved(folder / "of-2") == saved(folder / "alone")


def test_four_processes_write_the_same_files(folder: Path) -> None:
    ranks = RankProcesses(4, command("of-4"), folder)
    assert ranks.ended(SOON) == [0] * 4, ranks.printed()
    assert ranks.printed().count(SUMMARY) == 1
    assert saved(folder / "of-4") == saved(folder / "alone")


def test_processes_divide_each_of_fewer_saes(folder: Path) -> None:
    options = ("--seeds", "0", "3")
    alone = RankProcesses(1, command("two-alone", *options), folder)
    assert alone.ended(SOON) == [0], alone.printed()
    together = RankProcesses(4, command("two", *options), folder)
    assert together.ended(SOON) == [0] * 4, together.printed()
    assert saved(folder / "two") == saved(folder / "two-alone")
    for seed in (0, 3):
        parts = (folder / f"two/seed-{seed}/training").rglob("rank-*")
        assert {path.name for path in parts} == {
            f"rank-{rank}-of-4.safetensors" for rank in range(4)
        }


def test_processes_go_on_with_another_number_of_them(folder: Path) -> None:
    """Four, then two, one, and four again; one of each number but the last is killed."""
    out = folder / "chain"
    for size, step in ((4, 5), (2, 9), (1, 13)):
        killed = Fault("killed", size - 1, step)
        ranks = RankProcesses(size, command("chain"), folder, fault=killed)
        assert ranks.ended(SOON) == [*[1] * (size - 1), -signal.SIGKILL], ranks.printed()
        assert checkpoint_of(out) == step
        assert checkpoint_names(out) == names_of(size, step)
    ranks = RankProcesses(4, command("chain"), folder)
    assert ranks.ended(SOON) == [0] * 4, ranks.printed()
    assert checkpoint_names(out) == names_of(4, 16)
    assert saved(out) == saved(folder / "alone")


@pytest.mark.parametrize("variant", ["relu", "jumprelu"])
def test_processes_train_variants_with_thresholds(variant: str, folder: Path) -> None:
    options = ("--variant", variant)
    alone = RankProcesses(1, command(f"{variant}-alone", *options), folder)
    assert alone.ended(SOON) == [0], alone.printed()
    together = RankProcesses(2, command(variant, *options), folder)
    assert together.ended(SOON) == [0, 0], together.printed()
    assert saved(folder / variant) == saved(folder / f"{variant}-alone")


def test_a_killed_rank_ends_all_and_torchrun_goes_on(folder: Path) -> None:
    (folder / "breaking.py").write_text(_BREAKING.format(what="os.kill(os.getpid(), 9)"))
    done = torchrun(2, "breaking.py", *command("killed"), cwd=folder, restarts=1)
    assert done.returncode == 0, done.stderr
    assert saved(folder / "killed") == saved(folder / "alone")


_SLOW = """
import sys, time
from saefast.cli import main
from saefast.train.seed_trainer import SeedTrainer

real = SeedTrainer.train

def slow(trainer, number, batch):
    time.sleep(0.3)
    real(trainer, number, batch)

SeedTrainer.train = slow
sys.exit(main(sys.argv[1:]))
"""


def test_torchrun_goes_on_with_fewer_ranks(folder: Path) -> None:
    """Two starters, as on two machines, of which one disappears with its rank."""
    (folder / "slow.py").write_text(_SLOW)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"]
    launch += ["--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", f"localhost:{port}", "--rdzv-conf"]
    with contextlib.ExitStack() as ended:
        starters = []
        for name in ("stays", "goes"):
            output = ended.enter_context((folder / f"{name}.txt").open("w"))
            settings = f"last_call_timeout=1,keep_alive_interval=1,is_host={name == 'stays'}"
            starter = [*launch, settings, "slow.py", *command("fewer")]
            starters.append(subprocess.Popen(starter, cwd=folder, stdout=output, stderr=output))
            ended.callback(starters[-1].wait)
            ended.callback(starters[-1].kill)
        stays, goes = starters
        while checkpoint_of(folder / "fewer") < 3:
            assert stays.poll() is None, (folder / "stays.txt").read_text()
            time.sleep(0.05)
        names = {path.name for path in (folder / "fewer").rglob("rank-*")}
        assert names >= {"rank-0-of-2.safetensors", "rank-1-of-2.safetensors"}
        for pid in [*children(goes.pid), goes.pid]:
            os.kill(pid, signal.SIGKILL)
        assert stays.wait(300) == 0, (folder / "stays.txt").read_text()
    assert list((folder / "fewer").rglob("step-16.safetensors"))  # written by one rank
    assert saved(folder / "fewer") == saved(folder / "alone")


def test_the_first_rank_reports_why_another_one_failed(folder: Path) -> None:
    (folder / "breaking.py").write_text(_BREAKING.format(what="raise OSError('the disk is full')"))
    done = torchrun(2, "breaking.py", *command("failed"), cwd=folder)
    assert done.returncode != 0
    messages = [line for line in done.stderr.splitlines() if "saefast: " in line]
    assert len(messages) == 1
    assert "saefast: the training stopped, since rank 1 failed: the disk is full" in messages[0]
    assert checkpoint_of(folder / "failed") == 7


def test_unsupported_settings_are_refused_before_ranks_train(folder: Path) -> None:
    gated = RankProcesses(2, command("gated", "--variant", "gated"), folder)
    assert 0 not in gated.ended(SOON)
    assert f"saefast: {SEVERAL}, got gated; train it by one process" in gated.printed()
    assert not (folder / "gated" / "run.json").exists()
    quick = RankProcesses(2, ["run", "quick", "--out", "quick"], folder)
    assert 0 not in quick.ended(SOON)
    assert "saefast: torchrun starts trainings on a store of activations alone" in quick.printed()
