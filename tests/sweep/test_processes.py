"""Sweeps with worker processes, killed anywhere, end with the bytes of single runs."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.small_sweep import UNTIL, assert_same_cells, small_sweep, sweep_file

from saefast.disk.tables import read_table
from saefast.sweep import run_sweep

CHECKPOINT = "seed-*/training/step-*.safetensors"


def driver(file: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "saefast", "sweep", str(file), "--out", str(out)]
    options = ["--processes", "2", "--until", UNTIL]
    return subprocess.Popen(
        [*command, *options],
        cwd=out.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A shell starts background jobs with SIGINT ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def has_content(path: Path) -> bool:
    return path.stat().st_size > 0


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(name) for name in path.read_text().split()] if path.exists() else []


def is_worker(pid: int) -> bool:
    try:
        return b"saefast.sweep.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_killed_anywhere_a_sweep_ends_with_the_same_bytes(tmp_path: Path, alone: Path) -> None:
    file, out = sweep_file(tmp_path / "file"), tmp_path / "out"
    chance = random.Random(seed := int.from_bytes(os.urandom(4)))
    print(f"times drawn from {seed}")
    running = driver(file, out)
    wait_for(lambda: any(out.glob("cells/*/run.json")), running)
    time.sleep(chance.uniform(0, 1))
    wait_for(lambda: any(map(is_worker, children(running.pid))), running)
    victim = next(pid for pid in children(running.pid) if is_worker(pid))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: any(out.glob("cells/*/features.parquet")), running)
    time.sleep(chance.uniform(0, 0.5))
    # Between two tasks there may be none for a moment.
    wait_for(lambda: any(map(is_worker, children(running.pid))), running)
    workers = [pid for pid in children(running.pid) if is_worker(pid)]
    running.kill()
    output, _ = running.communicate()
    assert "failed: the worker was killed by SIGKILL" in output
    deadline = time.monotonic() + 20
    while any(map(is_worker, workers)):  # they end with their driver
        assert time.monotonic() < deadline
        time.sleep(0.01)
    again = driver(file, out)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "12 of 12 cells are finished" in output
    assert_same_cells(small_sweep(tmp_path / "file"), out, alone)
    assert {row["status"] for row in read_table(out / "results.parquet").to_pylist()} == {
        "finished"
    }


def test_ctrl_c_leaves_checkpoints(tmp_path: Path) -> None:
    """Before any is due: trainings are interrupted, not killed."""
    changes = {"train": {"tokens": 10**8}, "trainer": {"checkpoint_minutes": 60}}
    file, out = sweep_file(tmp_path / "file", **changes), tmp_path / "out"
    running = driver(file, out)
    try:
        wait_for(lambda: sum(map(has_content, out.glob("cells/*/metrics.jsonl"))) == 12, running)
        assert not list(out.glob(f"cells/*/{CHECKPOINT}"))
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "run the same command again to resume" in output
    assert len(list(out.glob(f"cells/*/{CHECKPOINT}"))) == 24


def test_threads_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has another saefast, which neither the driver nor workers import."""
    (tmp_path / "saefast").mkdir()
    (tmp_path / "saefast" / "__init__.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)), raising=False)
    text = 'base = "base.toml"\n[grid]\n"train.k" = [2, 3]\n'
    sweep = small_sweep(tmp_path, text)
    run_sweep(sweep, tmp_path / "out", until="harvest", processes=2)
    rows = read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["threads"] for row in rows} == {3}
