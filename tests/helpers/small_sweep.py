"""A sweep of twelve small cells, and the same cells as single runs."""

import copy
import json
from pathlib import Path
from typing import Any

from helpers.tiny_run import SETTINGS, as_toml
from helpers.training_runs import files_of

from saefast.pipeline import run_pipeline
from saefast.sweep import Sweep, read_sweep
from saefast.sweep.tasks import Task
from saefast.sweep.workers import Answer, reason_of

UNTIL = "statistics"
"""Later stages take long, and are independent of other cells"""

GRID = """
base = "base.toml"
[settings]
"train.lr" = 0.01
[grid]
"train.latents" = [24, 32]
"train.k" = {from = 2, to = 4, step = 1}
"train.variant" = ["topk", "batchtopk"]
"""


def base_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of a run that takes a second."""
    settings = copy.deepcopy(SETTINGS)
    settings["planted"] |= {"rows": 2000, "held_out": 600}
    settings["train"] |= {"tokens": 3000, "seeds": [0, 1]}
    settings["trainer"] = {"checkpoint_minutes": 0.002}
    settings["pool"] = {"tokens": 500, "compare": False}
    settings["subspace"] = {"draws": 2}
    settings["evaluate"] = {"draws": 1}
    return settings


def sweep_file(folder: Path, text: str = GRID, **changes: dict[str, Any]) -> Path:
    """Write a sweep file and its base; `changes` are changed tables of the base."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = base_settings()
    for name, values in changes.items():
        settings[name] |= values
    (folder / "base.toml").write_text(as_toml(settings))
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def small_sweep(folder: Path, text: str = GRID, **changes: dict[str, Any]) -> Sweep:
    """Return the sweep of `sweep_file`."""
    return read_sweep(sweep_file(folder, text, **changes))


def one_after_another(sweep: Sweep, out: Path, until: str = UNTIL) -> Path:
    """Run the cells as single runs."""
    for cell in sweep.cells:
        run_pipeline(cell.settings, out / cell.name, until=until, progress=False)
    return out


def bytes_of(run: Path) -> dict[str, bytes]:
    """Return the content of a run that must be reproducible: everything but times."""
    kept = {name: content for name, content in files_of(run).items() if name[:6] != "sweep/"}
    stages = json.loads(kept.pop("stages.json"))
    kept["stages.json"] = json.dumps({name: its["digest"] for name, its in stages.items()}).encode()
    rows = [path for part in ("train", "held-out") for path in (run / "store" / part).iterdir()]
    shards = {f"store/{path.parent.name}/{path.name}": path.read_bytes() for path in rows}
    return {name: kept[name] for name in kept if name[:6] != "store/"} | shards


def assert_same_cells(sweep: Sweep, out: Path, alone: Path) -> None:
    for cell in sweep.cells:
        ours, theirs = bytes_of(out / "cells" / cell.name), bytes_of(alone / cell.name)
        assert sorted(ours) == sorted(theirs)
        for name, content in theirs.items():
            assert ours[name] == content, f"{name} of {cell.name}"


class InlineWorkers:
    """Workers that do each task in this process when it is waited for."""

    def __init__(self, groups: int = 1) -> None:
        self.groups = groups
        self.memory: int | None = None
        self.done: list[Task] = []
        self._waiting: list[Task] = []

    def free(self) -> bool:
        return not self._waiting

    def start(self, task: Task) -> None:
        self._waiting.append(task)

    def wait(self) -> Answer:
        task = self._waiting.pop()
        self.done.append(task)
        try:
            self.work(task)
        except Exception as error:
            return Answer(task, reason_of(error))
        return Answer(task, None)

    def work(self, task: Task) -> None:
        task.perform()

    def __enter__(self) -> "InlineWorkers":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """Return the kind and the number of cells of each task."""
        return [(task.kind, len(task.cells)) for task in self.done]
