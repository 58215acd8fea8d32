"""Sweeps whose file, folder or last stage changes between two starts, and the table of results."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from helpers.small_sweep import InlineWorkers, small_sweep

from saefast.disk.tables import read_json, read_table
from saefast.sweep import Sweep, SweepFolder, plan_sweep, pool, run_sweep, write_results
from saefast.sweep.tasks import divided

pytestmark = pytest.mark.usefixtures("light")

TWO = """
base = "base.toml"
[grid]
"train.k" = [2, 3]
"""


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all tasks in this process."""
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())


def cells_of(out: Path) -> list[dict[str, Any]]:
    rows = read_table(out / "results.parquet").to_pylist()
    return [row for row in rows if row["level"] == "cell"]


def test_status_is_of_the_last_requested_stage(tmp_path: Path) -> None:
    sweep, out = small_sweep(tmp_path, TWO), tmp_path / "out"
    run_sweep(sweep, out, until="harvest")
    assert [row["status"] for row in cells_of(out)] == ["finished", "finished"]
    folder = SweepFolder(out)
    folder.write(sweep, "train")
    write_results(folder)
    assert [row["status"] for row in cells_of(out)] == ["unfinished", "unfinished"]
    run_sweep(sweep, out, until="train")
    assert [row["status"] for row in cells_of(out)] == ["finished", "finished"]


def test_settings_of_later_stages_are_accepted_once(tmp_path: Path) -> None:
    """Requested stages need not depend on them."""
    out = tmp_path / "out"
    run_sweep(small_sweep(tmp_path / "one", TWO), out, until="train")
    other = small_sweep(tmp_path / "other", TWO, pool={"tokens": 700})
    with pytest.raises(ValueError, match=r"pool.tokens was 500 and is now 700"):
        run_sweep(other, out, until="train")
    lines: list[str] = []
    run_sweep(other, out, until="train", remake=True, tell=lines.append)
    assert [line.split(": ")[0] for line in lines] == ["k-2 is run again", "k-3 is run again"]
    run_sweep(other, out, until="train")
    assert read_json(out / "cells/k-2/settings.json")["pool"]["tokens"] == 700


def test_settings_without_effect_on_results_are_not_a_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(small_sweep(tmp_path / "one", TWO), out, until="train")
    other = small_sweep(tmp_path / "other", TWO, trainer={"log_every": 7})
    assert run_sweep(other, out, until="train").skipped == 2


def test_a_killed_removal_leaves_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, out = small_sweep(tmp_path, TWO), tmp_path / "out"
    run_sweep(sweep, out, until="harvest")
    folder = SweepFolder(out)
    with monkeypatch.context() as patch:
        patch.setattr("saefast.sweep.folder.shutil.rmtree", lambda *_, **__: None)
        folder.remove("k-2")
    assert not folder.cell("k-2").exists()
    assert folder.leftover(sweep) == []
    assert run_sweep(sweep, out, until="harvest").skipped == 1
    folder.remove("k-2")
    assert sorted(path.name for path in (out / "cells").iterdir()) == ["k-3"]


def test_an_axis_of_several_types_is_json(tmp_path: Path) -> None:
    text = (
        'base = "base.toml"\n[grid]\n"stability.threshold" = [0.5, "null"]\n"train.lr" = [1, 0.5]'
    )
    run_sweep(small_sweep(tmp_path, text), tmp_path / "out", until="harvest")
    rows = cells_of(tmp_path / "out")
    assert [row["stability.threshold"] for row in rows] == ["0.5", "0.5", '"null"', '"null"']
    assert [row["train.lr"] for row in rows] == [1, 0.5, 1, 0.5]


def test_names_of_sets_are_not_columns_of_the_table(tmp_path: Path) -> None:
    text = (
        'base = "base.toml"\n[sets.status.small]\n"train.k" = 2\n'
        '[sets.status.large]\n"train.k" = 3\n[grid]\nstatus = ["small", "large"]'
    )
    run_sweep(small_sweep(tmp_path, text), tmp_path / "out", until="harvest")
    rows = cells_of(tmp_path / "out")
    assert [row["sets.status"] for row in rows] == ["small", "large"]
    assert {row["status"] for row in rows} == {"finished"}


def test_saes_of_a_named_training_have_metrics(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, TWO, train={"name": "mine"})
    run_sweep(sweep, tmp_path / "out", until="train")
    rows = read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert all(row["l0"] > 0 for row in rows)


def test_a_plan_of_a_share_names_only_its_cells(tmp_path: Path) -> None:
    sweep, out = small_sweep(tmp_path, TWO), tmp_path / "out"
    for number in (1, 2):
        run_sweep(sweep, out, until="harvest", share=(number, 2))
    other = small_sweep(tmp_path, TWO, train={"tokens": 4000})
    for number, name in ((1, "k-2"), (2, "k-3")):
        assert plan_sweep(other, out, until="train", share=(number, 2)).changed == (name,)


def test_trainings_have_a_limited_number_of_cells(tmp_path: Path) -> None:
    """Each cell holds files open."""
    (one, *_) = small_sweep(tmp_path, TWO).cells
    many = [dataclasses.replace(one, name=f"cell-{number}") for number in range(450)]
    assert sorted(map(len, divided(many, 1, None, 24))) == [150, 150, 150]


def test_a_second_driver_waits_to_write_the_sweep(tmp_path: Path) -> None:
    sweep: Sweep = small_sweep(tmp_path, TWO)
    folder = SweepFolder(tmp_path / "out")
    with folder.writing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("saefast.disk.lock.time.sleep", _waited)
        with pytest.raises(_Waited):
            folder.write(sweep, "train")


class _Waited(Exception):
    """Raised when the lock is held by another driver."""


def _waited(_seconds: float) -> None:
    raise _Waited
