"""Sweeps on a real Ray: processes and drivers killed, they end with the bytes of single runs."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.inline_workers import content
from helpers.small_sweep import (
    UNTIL,
    assert_same_cells,
    small_sweep,
    sweep_file,
)
from helpers.tiny_lm import TEXTS, saved

from saefast import SAE, load_dictionaries, match_all, save_sae
from saefast.disk.tables import read_table
from saefast.lm import harvest, load_model
from saefast.sweep import harvest_by_processes, match_by_processes, run_sweep

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'saefast[ray]'")

FOUR = """
base = "base.toml"
[grid]
"train.latents" = [24, 32]
"train.k" = [2, 3]
"""
OF_A_PLACE = {"seconds", "machine", "processor", "threads", "commit", "report"}


@pytest.fixture(autouse=True)
def own_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make drivers start instances of their own, without a key in a home folder."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start an instance with two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the table of results without columns of time and place."""
    rows = read_table(out / "results.parquet").to_pylist()
    return [{key: row[key] for key in row if key not in OF_A_PLACE} for row in rows]


def driver(file: Path, out: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-m", "saefast", "sweep", str(file), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--until", UNTIL, "--on", "ray"],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def workers_of(parent: int, task: str) -> list[int]:
    """Return the processes of Ray below a process that perform a task."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::saefast {task}".encode()):
            found.append(int(path.parent.name))
    return [pid for pid in found if parent in ancestors(pid)]


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes in /proc")
def test_killed_anywhere_a_sweep_ends_with_the_same_bytes(tmp_path: Path, alone: Path) -> None:
    """The current folder has another saefast, which neither driver nor workers import."""
    folder = tmp_path / "here"
    (folder / "saefast").mkdir(parents=True)
    (folder / "saefast" / "__init__.py").write_text("raise ImportError('not this one')")
    file, out = sweep_file(tmp_path / "file"), tmp_path / "out"
    chance = random.Random(seed := int.from_bytes(os.urandom(4)))
    print(f"times drawn from {seed}")
    running = driver(file, out, folder)
    try:
        kind = chance.choice(["harvest", "train", "stages"])
        victim = wait_for(lambda: workers_of(running.pid, kind), running)[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        wait_for(lambda: any(out.glob("cells/*/features.parquet")), running)
        time.sleep(chance.uniform(0, 0.5))
        assert running.poll() is None, "the sweep ended before its driver could be killed"
    finally:
        running.kill()
    output, _ = running.communicate()
    assert " failed: " not in output  # Ray has repeated the task
    again = driver(file, out, folder)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert "12 of 12 cells are finished" in output
    sweep = small_sweep(tmp_path / "file")
    assert_same_cells(sweep, out, alone)
    run_sweep(sweep, tmp_path / "local", until=UNTIL, processes=1)
    assert rows_of(out) == rows_of(tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_a_cell_that_fails_is_tried_again_and_then_named(tmp_path: Path) -> None:
    """On an instance that stays, with one task at a time."""
    sweep, out = small_sweep(tmp_path, FOUR), tmp_path / "out"
    lines: list[str] = []
    bad = sweep.cells[1].name
    (out / "cells" / bad / "run.json").mkdir(parents=True)  # which the training cannot write
    outcome = run_sweep(sweep, out, until="train", on="ray", processes=1, tell=lines.append)
    assert list(outcome.failed) == [bad]
    assert outcome.failed[bad].startswith("IsADirectoryError: ")
    assert sum(" failed: " in line for line in lines) == 2
    assert ray.is_initialized()
    states = {row["cell"]: row["status"] for row in rows_of(out) if row["level"] == "cell"}
    assert [name for name, state in states.items() if state == "failed"] == [bad]
    assert list(states.values()).count("finished") == 3


@pytest.mark.usefixtures("cluster")
def test_pairs_have_the_bytes_of_one_process(tmp_path: Path) -> None:
    saes = [save_sae(SAE(12, 40, k=2, seed=seed), tmp_path / f"sae-{seed}") for seed in range(5)]
    files = match_by_processes(
        *saes, out=tmp_path / "many", on="ray", one_to_one=True, progress=False
    )
    assert len(files) == 10
    match_all(load_dictionaries(*saes), out=tmp_path / "one", one_to_one=True, progress=False)
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.usefixtures("cluster", "light")
def test_rows_have_the_bytes_of_one_process(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "model"), progress=False)
    settings: dict[str, Any] = {"corpus": TEXTS * 8, "context": 16, "batch_size": 3}
    settings |= {"rows_per_shard": 50, "progress": False, "tokens": 601}
    harvest(model, 1, out=tmp_path / "one", **settings)
    harvest_by_processes(model, 1, out=tmp_path / "many", processes=2, on="ray", **settings)
    assert content(tmp_path / "many") == content(tmp_path / "one")
