"""Sites of a language model: one pass for all, with the rows of separate harvests."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_sweep import (
    InlineWorkers,
    assert_same_cells,
    one_after_another,
    small_sweep,
)
from helpers.tiny_lm import saved, write_texts
from helpers.tiny_run import as_toml

from saefast import lm
from saefast.disk.tables import read_table
from saefast.sweep import Sweep, divided_harvest, pool, read_sweep, run_sweep
from saefast.sweep.harvest_tasks import HARVEST_PART

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards small, since a part of a harvest has at least one."""
    monkeypatch.setattr("saefast.lm.harvest_plan._FEWEST_ROWS", 16)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Return four cells on two sites of one model."""
    folder = tmp_path_factory.mktemp("sites")
    write_texts(folder / "text", 60)
    base = {
        "harvest": {
            "model": str(saved(folder / "model")),
            "text": str(folder / "text"),
            "tokens": 400,
            "held_out": 50,
            "context": 16,
        },
        "train": {"latents": 40, "k": 3, "tokens": 800, "batch_size": 64, "seeds": [0]},
    }
    (folder / "base.toml").write_text(as_toml(base))
    file = folder / "sweep.toml"
    file.write_text(
        'base = "base.toml"\n[grid]\n"harvest.site" = ["resid.1", "mlp.2"]\n"train.k" = [2, 3]\n'
    )
    return read_sweep(file)


@pytest.fixture
def alone(sweep: Sweep, tmp_path: Path) -> Path:
    return one_after_another(sweep, tmp_path / "alone", until="train")


def drive(sweep: Sweep, out: Path, hands: InlineWorkers, **options: Any) -> list[str]:
    """Run a sweep without failed cells on these workers, and return its result."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "LocalWorkers", lambda *_: hands)
        assert (
            run_sweep(sweep, out, tell=lines.append, **{"until": "train", **options}).failed == {}
        )
    return lines


def test_sites_are_harvested_in_one_pass(
    sweep: Sweep, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Any] = []
    harvest = lm.harvest

    def counted(model: Any, sites: Any, **options: Any) -> list[Path]:
        passes.append(sites)
        return harvest(model, sites, **options)

    monkeypatch.setattr(lm, "harvest", counted)
    hands = InlineWorkers()
    drive(sweep, tmp_path / "out", hands)
    assert passes == [["resid.1", "mlp.2"]] * 2  # rows to train on, and held-out rows
    assert hands.kinds == [("harvest", 4), ("train", 2), ("train", 2)]
    assert_same_cells(sweep, tmp_path / "out", alone)
    assert len(list((tmp_path / "out" / "stores").iterdir())) == 1


def test_all_workers_share_a_harvest(sweep: Sweep, alone: Path, tmp_path: Path) -> None:
    hands = InlineWorkers(groups=3)
    lines = drive(sweep, tmp_path / "out", hands)
    assert lines[0].startswith("harvest ")
    assert lines[0].endswith(", by 3 workers")
    kinds = [task.kind for task in hands.done]
    parts = kinds.count(HARVEST_PART)
    assert parts >= 4  # at least two of both rows to train on and held-out rows
    assert kinds[:parts] == [HARVEST_PART] * parts
    assert kinds[parts:] == ["harvest", *["train"] * 4]
    assert_same_cells(sweep, tmp_path / "out", alone)


def test_two_processes_share_a_harvest(sweep: Sweep, alone: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run_sweep(sweep, tmp_path / "out", until="train", processes=2, tell=lines.append)
    assert lines[0].endswith(", by 2 workers")
    assert not [line for line in lines if "failed" in line]
    assert_same_cells(sweep, tmp_path / "out", alone)


def test_a_sweep_that_ends_with_shared_harvests_is_finished(sweep: Sweep, tmp_path: Path) -> None:
    hands = InlineWorkers(groups=2)
    drive(sweep, tmp_path / "out", hands, until="harvest")
    assert {task.kind for task in hands.done} == {HARVEST_PART, "harvest"}
    rows = read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"finished"}
    hands = InlineWorkers(groups=2)
    drive(sweep, tmp_path / "out", hands, until="harvest")
    assert hands.done == []


class WithoutParts(InlineWorkers):
    """Workers on which every part of a harvest fails."""

    def work(self, task: Any) -> None:
        if task.kind == HARVEST_PART:
            raise OSError("no room")
        super().work(task)


def test_a_harvest_that_fails_is_tried_by_one_worker(
    sweep: Sweep, alone: Path, tmp_path: Path
) -> None:
    hands = WithoutParts(groups=2)
    lines = drive(sweep, tmp_path / "out", hands)
    assert any("failed: RuntimeError" in line and "no room" in line for line in lines)
    assert_same_cells(sweep, tmp_path / "out", alone)


def test_a_harvest_of_another_driver_is_waited_for(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise BlockingIOError("is being written by another process")

    monkeypatch.setattr(divided_harvest, "harvest_by_processes", locked)
    hands = InlineWorkers(groups=2)
    lines = drive(sweep, tmp_path / "out", hands)
    assert "waits for another process" in lines[1]
    assert hands.done[0].kind == "harvest"


def test_stores_for_all_workers_are_harvested_apart(sweep: Sweep, tmp_path: Path) -> None:
    hands = InlineWorkers(groups=1)
    drive(sweep, tmp_path / "out", hands, until="harvest")
    assert [task.kind for task in hands.done] == ["harvest"]
    hands = InlineWorkers(groups=3)
    lines = drive(small_sweep(tmp_path / "planted"), tmp_path / "rows", hands, until="harvest")
    assert [task.kind for task in hands.done] == ["harvest"]
    assert len(lines) == 1
