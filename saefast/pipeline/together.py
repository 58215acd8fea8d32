"""Stages harvest and train of several runs at once: one pass of the model, one over the rows.

The result of every run is the same as from both stages alone, except that its rows are links to
stores that the runs share.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saefast.disk.atomic import explained, flush_folder, make_folder
from saefast.pipeline.job import Job
from saefast.pipeline.runner import begin_run, finish_stage, is_finished
from saefast.pipeline.settings import Data, HarvestSettings, PlantedSettings, RunSettings
from saefast.pipeline.stages.harvest import harvest_sites, plant
from saefast.pipeline.stages.train import train_jobs
from saefast.run_folder import HELD_OUT_ROWS, TRAIN_ROWS
from saefast.train.config import SHARED


def store_key(settings: RunSettings) -> str:
    """Return a name that is equal for runs whose rows come from one pass of one model."""
    content = _content(settings.data)
    content.pop("site", None)
    source = type(settings.data).__name__.removesuffix("Settings").lower()
    digest = hashlib.sha256(json.dumps([source, content], sort_keys=True).encode()).hexdigest()
    return f"{source}-{digest[:12]}"


def stream_key(settings: RunSettings) -> str:
    """Return a text that is equal for runs whose SAEs can be trained in one pass over the rows."""
    trainer = dataclasses.asdict(settings.trainer)
    del trainer["initial"]
    shared = [getattr(settings.train, name) for name in SHARED]
    return json.dumps([_content(settings.data), shared, trainer])


def _content(data: Data) -> dict[str, Any]:
    """Return the settings on which rows depend to the last bit.

    The device of a language model is named unless it is the CPU, so that stores of sweeps from
    before there was a choice keep their names.
    """
    content = dataclasses.asdict(data)
    if isinstance(data, HarvestSettings):
        del content["device"]
        if data.device_type != "cpu":
            content["device"] = data.device_type
    return content


def harvest_together(
    jobs: Sequence[Job],
    stores: Path,
    *,
    progress: bool = True,
    write: Callable[..., list[Path]] | None = None,
) -> None:
    """Write the rows of runs with one `store_key`, and link them into the folder of each.

    Args:
        jobs: runs to harvest.
        stores: folder of all stores.
        progress: show progress bars on stderr.
        write: function that writes the rows of a language model, as for `harvest_sites`.
    """
    begun = time.perf_counter()
    waiting = [job for job in jobs if not is_finished(job, "harvest")]
    if not waiting:
        return
    data = waiting[0].settings.data
    train, held_out = (stores / store_key(waiting[0].settings) / part for part in _PARTS)
    places: dict[str, tuple[Path, Path]] = {}
    if isinstance(data, HarvestSettings):
        sites = list(dict.fromkeys(_site(job) for job in waiting))
        found = harvest_sites(data, sites, train, held_out, progress, write)
        places = dict(zip(sites, found, strict=True))
    elif isinstance(data, PlantedSettings):
        plant(data, train, held_out, progress)
        places = {"": (train, held_out)}
    seconds = (time.perf_counter() - begun) / len(waiting)
    for job in waiting:
        begin_run(job)
        if places:
            train, held_out = places[_site(job)]
            _link(job.run / TRAIN_ROWS, train)
            _link(job.run / HELD_OUT_ROWS, held_out)
        finish_stage(job, "harvest", seconds)


def train_together(jobs: Sequence[Job], *, progress: bool = True) -> None:
    """Train the SAEs of runs with one `stream_key` in one pass over their harvested rows.

    Args:
        jobs: runs to train.
        progress: show a progress bar on stderr.
    """
    begun = time.perf_counter()
    waiting = [job for job in jobs if not is_finished(job, "train")]
    if not waiting:
        return
    train_jobs(waiting, progress)
    saes = sum(len(job.seeds) for job in waiting)
    seconds = time.perf_counter() - begun
    for job in waiting:
        finish_stage(job, "train", seconds * len(job.seeds) / saes)


_PARTS = (Path(TRAIN_ROWS).name, Path(HELD_OUT_ROWS).name)


def _site(job: Job) -> str:
    data = job.settings.data
    return data.site if isinstance(data, HarvestSettings) else ""


def _link(link: Path, store: Path) -> None:
    """Create a relative link, so that the common folder can be moved; existing rows are kept."""
    target = os.path.relpath(store.resolve(), link.parent.resolve())
    if link.is_symlink():
        if os.readlink(link) == target:
            return
        link.unlink()
    elif link.exists():
        return
    make_folder(link.parent)
    with explained(link):
        link.symlink_to(target, target_is_directory=True)
        flush_folder(link.parent)
