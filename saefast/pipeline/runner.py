"""Execution of the stages of a run in their order."""

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saefast import checks
from saefast.activations.store import INDEX
from saefast.disk.atomic import make_folder
from saefast.disk.resume import refuse_existing
from saefast.disk.tables import read_json, write_json
from saefast.pipeline.following import begin_training, check_ranks, follow, leading
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings, RunSettings, StoreSettings
from saefast.pipeline.settings_file import settings_from
from saefast.pipeline.stage_list import (
    BY_NAME,
    EVALUATIONS,
    NAMES,
    STAGE_LIST,
    Stage,
    digest,
    fingerprint_of_rows,
)
from saefast.pipeline.stages.pool import can_pool
from saefast.pipeline.stages.train import check_training
from saefast.run_folder import (
    POOLED,
    SETTINGS,
    STAGES,
    UNFINISHED,
)
from saefast.run_records import StageRecord, read_record, write_record
from saefast.train.checkpoint import RUN, RunFile
from saefast.train.ranks import Ranks
from saefast.train.ranks.processes import world

_WITH_MODEL = {"harvest", "statistics", "evaluate", *EVALUATIONS}
"""Names of the stages that load a language model"""


class Outcome(NamedTuple):
    """Outcome of a stage."""

    stage: str
    """name of the stage"""
    seconds: float
    """wall time of the stage"""
    skipped: bool
    """whether it had been finished before"""
    written: tuple[Path, ...]
    """files that the stage wrote"""


def run_pipeline(
    settings: RunSettings,
    out: str | Path,
    *,
    until: str | Sequence[str] = "report",
    resume: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Run every stage up to `until`, with one language model for all of them.

    Args:
        settings: settings of all stages, which are written to OUT/settings.json.
        out: folder of the run.
        until: last stage, or several; stages on which they do not depend are left out.
        resume: continue the run in `out`: finished stages are skipped, an interrupted stage is
            continued, and stages whose settings have changed are repeated.
        progress: show progress bars on stderr.
        tell: callback that gets a line as each stage begins.

    Under torchrun every process calls this with the same arguments. The first one runs the stages,
    which must end with the training, and the others take part in it; see `train_saes`.

    Returns:
        Outcomes of the stages, in their order; none on other ranks than the first.

    Raises:
        FileExistsError: `out` contains a run and `resume` is False.
        ValueError: `until` is unknown, or the settings do not allow its stages.
    """
    last = [until] if isinstance(until, str) else list(until)
    for name in last:
        if name not in BY_NAME:
            raise ValueError(f"until must be one of {', '.join(NAMES)}, got {name!r}")
    run = Path(out)
    for name in (SETTINGS, RUN):
        refuse_existing(run / name, resume)
    job = Job(run, settings, progress)
    wanted = {each for name in last for each in _needed(name)}
    for name in last:
        check_run(job, name)
        check_here(job, name)
    ranks = world()
    check_ranks(ranks, job, wanted)
    if ranks.rank > 0:
        follow(ranks, job)
        return []
    with leading(ranks):
        return _stages(job, wanted, ranks, tell)


def _stages(job: Job, wanted: set[str], ranks: Ranks, tell: Callable[[str], None]) -> list[Outcome]:
    """Run the wanted stages in their order."""
    run, settings = job.run, job.settings
    trained = begin_run(job)
    outcomes = []
    for number, stage in enumerate(each for each in STAGE_LIST if each.name in wanted):
        begun = time.perf_counter()
        skipped = is_finished(job, stage.name)
        if skipped:
            _remove_unfinished(job, stage.name)  # a kill or an error may have prevented it
        else:
            tell(f"[{number + 1}/{len(wanted)}] {stage.name}: {stage.title}")
            if stage.name == "train":
                begin_training(ranks)
            stage.work(job)
            finish_stage(job, stage.name, time.perf_counter() - begun)
        if trained and stage.name == "train":
            write_json(run / SETTINGS, settings.to_dict())
        written = tuple(run / name for name in _files(job, stage))
        outcomes.append(Outcome(stage.name, time.perf_counter() - begun, skipped, written))
    return outcomes


def begin_run(job: Job) -> bool:
    """Create the folder of a run with its settings; return whether a training exists there."""
    make_folder(job.run)
    # Training refuses settings that differ from the recorded ones, so these are not overwritten.
    trained = RunFile.read(job.run) is not None
    if not trained:
        write_json(job.run / SETTINGS, job.settings.to_dict())
    return trained


def is_finished_until(job: Job, until: str) -> bool:
    """Return whether a stage and the stages on which it depends are finished."""
    return all(is_finished(job, name) for name in _needed(until))


def settings_of(run: str | Path) -> RunSettings:
    """Return the settings of a run.

    Args:
        run: folder of the run, or of a training by `train_saes`.

    Returns:
        Settings of all stages.
    """
    path = Path(run) / SETTINGS
    settings = read_json(path) or _settings_of_training(Path(run))
    if settings is None:
        what = (
            f"holds no run: neither {SETTINGS} nor {RUN}"
            if path.parent.exists()
            else "does not exist"
        )
        raise FileNotFoundError(
            f"{path.parent} {what}; start a run with saefast run, demo or train"
        )
    try:
        return settings_from(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _settings_of_training(run: Path) -> dict[str, Any] | None:
    """Return the settings of a folder written by `train_saes` alone; None for others."""
    training = RunFile.read(run)
    if training is None:
        return None
    configs = training.facts["configs"]
    if not training.finished or len(configs) != 1:
        reason = "is not finished" if not training.finished else f"has {len(configs)} configs"
        raise ValueError(
            f"{run} holds a training that {reason}; stages need SAEs that differ in their seed "
            f"alone, trained to the end: finish it, or give the folders to saefast match"
        )
    return {"trained": {}, "train": {k: v for k, v in configs[0].items() if k != "loss"}}


def check_run(job: Job, until: str) -> None:
    """Raise, before anything is written or trained, if the stages up to one cannot run."""
    wanted = _needed(until)
    if (job.run / INDEX).is_file():
        raise FileExistsError(f"out must be the folder of a run, but {job.run} holds activations")
    if "match" in wanted and len(job.seeds) < 2:
        raise ValueError(
            f"seeds must be two or more for their features to be matched, got {job.seeds}; with "
            f"until='train' one is enough"
        )
    if isinstance(job.settings.data, StoreSettings):
        for path in {job.train_rows, job.held_out_rows}:
            fingerprint_of_rows(path)


def check_here(job: Job, until: str) -> None:
    """Raise an error if an unfinished stage up to `until` lacks its device, packages or SAEs."""
    data, wanted = job.settings.data, _needed(until)
    if "train" in wanted and job.knows_rows and not is_finished(job, "train"):
        check_training(job)
    if not isinstance(data, HarvestSettings) or data.device_type == "cpu":
        return
    if any(not is_finished(job, name) for name in wanted & _WITH_MODEL):
        checks.device_here("device", data.device)


def _needed(name: str) -> set[str]:
    found = {name}
    for need in BY_NAME[name].needs:
        found |= _needed(need)
    return found


def _files(job: Job, stage: Stage) -> tuple[str, ...]:
    """Return the files of a stage that exist with the settings of a run once it is finished."""
    left_out = () if can_pool(job.settings) else (POOLED,)
    return tuple(name for name in stage.files if name not in left_out)


def _records(job: Job) -> dict[str, StageRecord]:
    """Return the records of finished stages."""
    return read_record(job.run / STAGES, dict[str, StageRecord]) or {}


def is_finished(job: Job, name: str) -> bool:
    """Return whether the files of a stage exist and match the settings."""
    stage = BY_NAME[name]
    record = _records(job).get(name)
    there = all((job.run / file).exists() for file in _files(job, stage))
    return record is not None and there and record.digest == digest(job, stage)


def finish_stage(job: Job, name: str, seconds: float) -> None:
    """Record that a stage is finished.

    Records of later stages are removed, since they were computed from the replaced result.
    """
    records = _records(job)
    for other in NAMES:
        # The report shows every stage.
        if other in (name, "report") or name in _needed(other):
            records.pop(other, None)
    records[name] = StageRecord(digest(job, BY_NAME[name]), round(seconds, 3))
    write_record(job.run / STAGES, records)
    _remove_unfinished(job, name)


def _remove_unfinished(job: Job, name: str) -> None:
    """Remove the intermediate state of a finished stage."""
    shutil.rmtree(job.run / UNFINISHED / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is missing, or holds other stages' folders
        (job.run / UNFINISHED).rmdir()
