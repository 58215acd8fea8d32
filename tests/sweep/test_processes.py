"""Sweeps with worker processes, killed anywhere, end with the bytes of single runs."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.small_sweep import UNTIL, assert_same_cells, small_sweep, sweep_file
from helpers.worker_processes import children, is_worker

from saefast.disk.tables import read_table
from saefast.sweep import run_sweep
from saefast.sweep.tasks import Task
from saefast.sweep.workers import Answer, LocalWorkers

CHECKPOINT = "seed-*/training/step-*.safetensors"


def driver(file: Path, out: Path, room: int | None = None) -> "subprocess.Popen[str]":
    """Start a sweep, for which every file has at most `room` bytes."""

    def prepare() -> None:
        # A shell starts background jobs with SIGINT ignored, which processes inherit.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "saefast", "sweep", str(file), "--out", str(out)]
    options = ["--processes", "2", "--until", UNTIL]
    return subprocess.Popen(
        [*command, *options],
        cwd=out.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=prepare,
    )


def has_content(path: Path) -> bool:
    return path.stat().st_size > 0


def appears(what: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Wait until `what` holds; return False where the process ended before."""
    while not what():
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    assert appears(what, process), process.communicate()


def kill_within(
    running: "subprocess.Popen[str]", out: Path, longest: float, chance: random.Random
) -> bool:
    """Kill a worker and later the driver, each within `longest` seconds of an event.

    Returns:
        False where the sweep ended before its driver could be killed.
    """
    workers: list[int] = []

    def has_workers() -> bool:  # between two tasks there may be none for a moment
        workers[:] = filter(is_worker, children(running.pid))
        return bool(workers)

    def ends_before(event: str) -> bool:
        wait_for(lambda: any(out.glob(event)), running)
        time.sleep(chance.uniform(0, longest))
        return not appears(has_workers, running)

    if not ends_before("cells/*/run.json"):
        os.kill(workers[0], signal.SIGKILL)
    if ends_before("cells/*/features.parquet"):
        running.communicate()
        return False
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_worker, workers)):  # they end with their driver
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_killed_anywhere_a_sweep_ends_with_the_same_bytes(tmp_path: Path, alone: Path) -> None:
    file = sweep_file(tmp_path / "file")
    chance = random.Random(seed := int.from_bytes(os.urandom(4)))
    print(f"times drawn from {seed}")
    # On a fast machine all later stages take less than the longest time: try shorter ones.
    for longest in (1.0, 0.3, 0.1, 0.0):
        out = tmp_path / f"out-{longest}"
        if kill_within(driver(file, out), out, longest, chance):
            break
    else:
        pytest.fail("every sweep ended before it was killed")
    again = driver(file, out)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "12 of 12 cells are finished" in output
    assert_same_cells(small_sweep(tmp_path / "file"), out, alone)
    assert {row["status"] for row in read_table(out / "results.parquet").to_pylist()} == {
        "finished"
    }


def test_a_disk_without_room_leaves_a_sweep_that_resumes(tmp_path: Path, alone: Path) -> None:
    """Files of trainings exceed the room for a file; rows are there already."""
    file, out = sweep_file(tmp_path / "file"), tmp_path / "out"
    run_sweep(small_sweep(tmp_path / "file"), out, until="harvest", processes=1)
    limited = driver(file, out, room=6_000)
    output, _ = limited.communicate()
    assert limited.returncode == 1, output
    assert "File too large" in output
    again = driver(file, out)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert_same_cells(small_sweep(tmp_path / "file"), out, alone)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    cell = sweep.cells[0]
    settings = (cell.settings.to_dict(),)
    task = Task("harvest", str(tmp_path / "out"), UNTIL, (cell.name,), settings, (0,))
    before = set(children(os.getpid()))
    with LocalWorkers(1, 1) as workers:
        workers.start(task)
        (pid,) = set(children(os.getpid())) - before
        os.kill(pid, signal.SIGKILL)  # while it imports
        assert workers.wait() == Answer(task, "the worker was killed by SIGKILL", died=True)
        workers.start(task)
        assert workers.wait() == Answer(task, None)
    assert list((tmp_path / "out").glob("stores/*"))


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
