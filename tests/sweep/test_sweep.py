"""Sweeps: cells equal single runs, failures are retried, and the table has all results."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import full_disk
from helpers.small_sweep import (
    UNTIL,
    InlineWorkers,
    assert_same_cells,
    bytes_of,
    small_sweep,
)

from saefast.disk.lock import Claim
from saefast.disk.tables import read_json, read_table
from saefast.pipeline import run_pipeline
from saefast.sweep import Sweep, SweepFolder, SweepOutcome, pool, run_sweep, write_results
from saefast.sweep.tasks import Task, divided, training_bytes
from saefast.sweep.workers import Answer

pytestmark = pytest.mark.usefixtures("light")

TWO = """
base = "base.toml"
[grid]
"train.k" = [2, 3]
"""


def drive(
    sweep: Sweep, out: Path, workers: InlineWorkers | None = None, **options: Any
) -> tuple[SweepOutcome, InlineWorkers]:
    hands = workers or InlineWorkers()
    options = {"until": UNTIL} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "LocalWorkers", lambda *_: hands)
        return run_sweep(sweep, out, **options), hands


@pytest.fixture(scope="module")
def finished(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path, Any]:
    folder = tmp_path_factory.mktemp("sweeps")
    sweep = small_sweep(folder)
    _, hands = drive(sweep, folder / "out", InlineWorkers(groups=2))
    return sweep, folder / "out", hands.kinds


@pytest.fixture
def swept(finished: tuple[Sweep, Path, Any], tmp_path: Path) -> tuple[Sweep, Path]:
    """Return a copy that tests can change."""
    return finished[0], shutil.copytree(finished[1], tmp_path / "out", symlinks=True)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_table(out / "results.parquet").to_pylist()


def test_cells_have_the_bytes_of_single_runs(
    finished: tuple[Sweep, Path, Any], alone: Path
) -> None:
    sweep, out, kinds = finished
    assert_same_cells(sweep, out, alone)
    assert kinds == [("harvest", 12), ("train", 6), ("train", 6), *[("stages", 1)] * 12]


def test_a_cell_is_a_run_also_after_the_sweep_is_moved(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    moved = out.rename(out.with_name("moved"))
    cell = sweep.cells[0]
    rows = moved / "cells" / cell.name / "store" / "train"
    assert rows.resolve().is_relative_to(moved.resolve() / "stores")
    outcomes = run_pipeline(
        cell.settings, moved / "cells" / cell.name, until="match", resume=True, progress=False
    )
    assert [each.stage for each in outcomes if not each.skipped] == ["match"]


def test_finished_cells_are_skipped(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    outcome, hands = drive(sweep, out)
    assert (outcome.cells, outcome.skipped, hands.done) == (12, 12, [])
    shutil.rmtree(out / "cells" / sweep.cells[3].name)
    (out / "cells" / sweep.cells[5].name / "features.parquet").unlink()
    outcome, hands = drive(sweep, out)
    assert outcome.skipped == 10
    assert [(task.kind, task.cells) for task in hands.done] == [
        ("harvest", (sweep.cells[3].name,)),
        ("stages", (sweep.cells[5].name,)),
        ("train", (sweep.cells[3].name,)),
        ("stages", (sweep.cells[3].name,)),
    ]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """Return two cells, run up to stability."""
    folder = tmp_path_factory.mktemp("scored")
    sweep = small_sweep(folder, TWO)
    drive(sweep, folder / "out", until="stability")
    return sweep, folder / "out"


def test_the_table_has_a_row_for_each_cell_and_sae(scored: tuple[Sweep, Path]) -> None:
    sweep, out = scored
    rows = rows_of(out)
    assert [(row["cell"], row["level"], row["seed"]) for row in rows] == [
        (cell.name, level, seed)
        for cell in sweep.cells
        for level, seed in (("cell", None), ("sae", 0), ("sae", 1))
    ]
    for row in rows:
        run = out / "cells" / row["cell"]
        stability = read_json(run / "stability.json")
        assert row["status"] == "finished"
        assert row["train.k"] == row["k"] == read_json(run / "settings.json")["train"]["k"]
        shares = [its["stable"] / its["alive"] for its in stability["seeds"]]
        if row["level"] == "sae":
            assert row["stable_share"] == shares[row["seed"]]
        else:
            assert row["stable_share"] == pytest.approx(sum(shares) / 2)
            stages = read_json(run / "stages.json").values()
            assert row["seconds"] == pytest.approx(sum(its["seconds"] for its in stages))
        for name in ("stable_share", "unstable_share", "stability"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert row[f"{name}_low"] < row[f"{name}_high"]
        for name in ("shared", "mmcs", "pw_mcc"):
            assert 0 <= row[f"{name}_null"] < 1
            assert row[f"{name}_min"] <= row[name] <= row[f"{name}_max"]
        assert row["l0"] > 0
        assert row["machine"]
        assert len(row["digest"]) == 16
    assert len({row["digest"] for row in rows}) == 2


def test_the_table_is_made_from_the_folders_only(scored: tuple[Sweep, Path]) -> None:
    _, out = scored
    before = (out / "results.parquet").read_bytes()
    (out / "results.parquet").write_bytes(b"half")
    write_results(SweepFolder(out))
    assert (out / "results.parquet").read_bytes() == before


class Failing(InlineWorkers):
    """Workers that fail at one kind of task, `times` times for each cell."""

    def __init__(self, times: dict[str, int], kind: str) -> None:
        super().__init__()
        self.times, self.kind = times, kind

    def work(self, task: Task) -> None:
        for name in task.cells:
            if task.kind == self.kind and self.times.get(name, 0) > 0:
                self.times[name] -= 1
                raise ValueError("rows hold\nNaN")
        super().work(task)


@pytest.mark.parametrize("kind", ["harvest", "train", "stages"])
def test_a_failed_cell_is_retried_and_then_named(tmp_path: Path, kind: str) -> None:
    sweep = small_sweep(tmp_path, TWO)
    bad, good = (cell.name for cell in sweep.cells)
    out = tmp_path / "out"
    outcome, hands = drive(sweep, out, Failing({bad: 9}, kind))
    assert outcome.failed == {bad: "ValueError: rows hold NaN"}
    assert sum(bad in task.cells for task in hands.done if task.kind == kind) == 2
    rows = {row["cell"]: row for row in rows_of(out) if row["level"] == "cell"}
    assert (rows[bad]["status"], rows[bad]["reason"]) == ("failed", "ValueError: rows hold NaN")
    assert (rows[good]["status"], rows[good]["reason"]) == ("finished", None)
    outcome, _ = drive(sweep, out)
    assert outcome.failed == {}
    assert outcome.skipped == 1
    assert {row["status"] for row in rows_of(out)} == {"finished"}


def test_one_failure_does_not_change_results(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, TWO)
    outcome, _ = drive(sweep, tmp_path / "out", Failing({sweep.cells[1].name: 1}, "stages"))
    assert outcome.failed == {}


class Dying(InlineWorkers):
    """Workers whose process ends during training, a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def wait(self) -> Answer:
        answer = super().wait()
        if answer.task.kind == "train" and self.left:
            self.left -= 1
            return Answer(answer.task, "the worker was killed by SIGKILL", died=True)
        return answer


def test_after_a_death_cells_are_retried_together_and_then_alone(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, TWO)
    outcome, hands = drive(sweep, tmp_path / "once", Dying(1))
    assert outcome.failed == {}
    assert hands.kinds[1:3] == [("train", 2), ("train", 2)]
    outcome, hands = drive(sweep, tmp_path / "twice", Dying(2))
    assert outcome.failed == {}
    assert hands.kinds[1:5] == [("train", 2), ("train", 2), ("train", 1), ("train", 1)]


def test_a_full_disk_does_not_change_results(alone: Path, tmp_path: Path) -> None:
    sweep = dataclasses.replace(small_sweep(tmp_path), cells=small_sweep(tmp_path).cells[:3])
    for written in (3, 11, 40):
        with full_disk(written), pytest.raises(OSError, match="No space left"):
            drive(sweep, tmp_path / "out")
    outcome, _ = drive(sweep, tmp_path / "out")
    assert outcome.failed == {}
    for cell in sweep.cells:
        ours = bytes_of(tmp_path / "out" / "cells" / cell.name)
        assert {n: b for n, b in ours.items() if not n.endswith(".part")} == bytes_of(
            alone / cell.name
        )


def test_a_second_driver_is_refused(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    with Claim(out), pytest.raises(BlockingIOError, match="by another process"):
        drive(sweep, out)
    with Claim(out), pytest.raises(BlockingIOError, match="by another process"):
        drive(sweep, out, share=(1, 2))
    folder = SweepFolder(out)
    with folder.claimed((1, 3)):
        with folder.claimed((2, 3)):
            pass
        for share in (None, (1, 3)):
            with pytest.raises(BlockingIOError, match="by another process"):
                drive(sweep, out, share=share)


def test_a_changed_file_names_the_cells_that_would_change(
    swept: tuple[Sweep, Path], tmp_path: Path
) -> None:
    sweep, out = swept
    other = small_sweep(tmp_path / "other", train={"tokens": 4000})
    with pytest.raises(ValueError, match="changes 12 cells") as printed:
        drive(other, out)
    for cell in sweep.cells:
        assert f"{cell.name}: train.tokens was 3000 and is now 4000" in str(printed.value)
    one = dataclasses.replace(other, cells=other.cells[:1])
    lines: list[str] = []
    outcome, hands = drive(one, out, remake=True, tell=lines.append)
    assert lines[0] == f"{one.cells[0].name} is run again: train.tokens was 3000 and is now 4000"
    assert [task.kind for task in hands.done] == ["harvest", "train", "stages"]
    assert len(outcome.leftover) == 11
    assert read_json(out / "cells" / one.cells[0].name / "settings.json")["train"]["tokens"] == 4000


def test_later_stages_can_change_without_training(
    swept: tuple[Sweep, Path], tmp_path: Path
) -> None:
    sweep, out = swept
    other = small_sweep(tmp_path / "other", evaluate={"contexts": 2})
    one = dataclasses.replace(sweep, cells=other.cells[:1])
    with pytest.raises(ValueError, match=r"evaluate.contexts was 5 and is now 2"):
        drive(one, out)
    _, hands = drive(one, out, remake=True)
    assert hands.kinds == [("stages", 1)]


def test_shares_have_every_cell_once(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    out = tmp_path / "out"
    seen: list[str] = []
    for number in (3, 1, 2):
        outcome, hands = drive(sweep, out, share=(number, 3), until="harvest")
        assert outcome.cells == 4
        seen += {name for task in hands.done for name in task.cells}
        assert [row["status"] for row in rows_of(out)].count("finished") == len(seen)
    assert sorted(seen) == sorted(cell.name for cell in sweep.cells)
    for share in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="share must be I/N with I from 1 to N"):
            drive(sweep, out, share=share)


def test_a_folder_without_a_sweep_is_refused(alone: Path, tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    with pytest.raises(FileExistsError, match="must be the folder of a sweep, but"):
        drive(sweep, alone / sweep.cells[0].name)
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        write_results(SweepFolder(tmp_path))


def test_cells_that_cannot_run_are_refused_before_writing(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, TWO, train={"seeds": [0]})
    with pytest.raises(ValueError, match="k-2 cannot be run: seeds must be two or more"):
        drive(sweep, tmp_path / "out", until="match")
    with pytest.raises(ValueError, match="until must be"):
        drive(sweep, tmp_path / "out", until="matching")
    assert not (tmp_path / "out").exists()


def test_trainings_are_divided_by_work_and_by_memory(tmp_path: Path) -> None:
    cells = small_sweep(tmp_path).cells

    def latents(groups: list[list[Any]]) -> list[int]:
        return sorted(sum(cell.settings.train.latents for cell in group) for group in groups)

    assert latents(divided(cells, 1, None, 24)) == [6 * 24 + 6 * 32]
    assert latents(divided(cells, 2, None, 24)) == [168, 168]
    assert len(divided(cells, 50, None, 24)) == 12
    whole = sum(training_bytes(cell.settings, 24) for cell in cells)
    assert whole > 2 * 2 * 24 * 12 * (6 * 24 + 6 * 32)  # SAEs, sides, width, bytes, latents
    assert len(divided(cells, 1, whole, 24)) == 1
    assert len(divided(cells, 1, whole // 4, 24)) == 4
    loud = [
        dataclasses.replace(
            cell,
            settings=dataclasses.replace(
                cell.settings,
                trainer=dataclasses.replace(cell.settings.trainer, log_to=("wandb",)),
            ),
        )
        for cell in cells
    ]
    assert len(divided(loud, 1, None, 24)) == 12


def test_a_variant_is_pooled_as_this_variant(tmp_path: Path) -> None:
    text = 'base = "base.toml"\n[grid]\n"train.variant" = ["batchtopk", "relu"]\n'
    sweep = small_sweep(tmp_path, text)
    outcome, _ = drive(sweep, tmp_path / "out", until="report")
    assert outcome.failed == {}
    for row in rows_of(tmp_path / "out"):
        assert row["explained_variance"] is not None
        assert (row["report"] is None) == (row["level"] == "sae")
        assert any(name.endswith("_overlap_covariance") and row[name] for name in row)
    for cell in sweep.cells:
        printed = json.loads((tmp_path / "out/cells" / cell.name / "pooled/cfg.json").read_text())
        assert printed["architecture"] != "topk"
