"""Execution of the stages of a run in their order."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saefast.activations import open_activations
from saefast.activations.store import INDEX
from saefast.disk.resume import refuse_existing
from saefast.disk.tables import read_json, write_json
from saefast.pipeline.beside import fingerprints
from saefast.pipeline.evaluations import Measure
from saefast.pipeline.following import begin_training, check_ranks, follow, leading
from saefast.pipeline.job import Job
from saefast.pipeline.settings import SOURCES, RunSettings, StoreSettings, settings_from
from saefast.pipeline.stages import absorb, edit, explain, probe, steer
from saefast.pipeline.stages.evaluate import evaluate
from saefast.pipeline.stages.harvest import harvest
from saefast.pipeline.stages.match import match
from saefast.pipeline.stages.pool import can_pool, pool
from saefast.pipeline.stages.stability import stability
from saefast.pipeline.stages.statistics import statistics
from saefast.pipeline.stages.subspace import subspace
from saefast.pipeline.stages.train import train
from saefast.run_folder import (
    EVALUATION,
    FEATURES,
    MEMBERSHIP,
    OVERLAP,
    POOLED,
    POOLING,
    REPORT,
    SETTINGS,
    STABILITY,
    STAGES,
    SUBSPACES,
    UNFINISHED,
    evaluation_file,
)
from saefast.run_records import StageRecord, read_record, write_record
from saefast.train.checkpoint import RUN, RunFile
from saefast.train.ranks import Ranks
from saefast.train.ranks.processes import world


class Stage(NamedTuple):
    """One step of a run, which reads and writes files."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[Job], None]
    depends: Callable[[Job], Any]
    """function that returns the settings on which the result depends"""
    files: tuple[str, ...]
    """files and folders that exist in the run's folder once the stage is finished"""
    title: str


class Outcome(NamedTuple):
    """Outcome of a stage."""

    stage: str
    seconds: float
    skipped: bool
    """whether it had been finished before"""
    written: tuple[Path, ...]


def _data(job: Job) -> Any:
    settings = job.settings.to_dict()
    source = {name: settings[name] for name in settings if name in SOURCES}
    if isinstance(job.settings.data, StoreSettings):
        paths = (job.train_rows, job.held_out_rows)
        source["fingerprints"] = [open_activations(str(path)).fingerprint for path in paths]
    return source


def _match(job: Job) -> Any:
    # Named only where it holds, so that matches of other variants from before remain valid.
    least = job.settings.stability.least_rate
    return [least, "absolute"] if job.absolute else least


def _part(*names: str) -> Callable[[Job], Any]:
    def depends(job: Job) -> Any:
        settings = job.settings.to_dict()
        return [settings[name] for name in names]

    return depends


def _counted(job: Job) -> Any:
    how = job.settings.evaluate
    return how.contexts if how.statistics_rows is None else [how.contexts, how.statistics_rows]


def _worth(job: Job) -> Any:
    """Return the settings of stage evaluate itself, without settings of evaluations by name."""
    settings = job.settings.to_dict()["evaluate"]
    return [{name: settings[name] for name in ("draws", "tokens", "contexts")}]


def _evaluation(name: str, work: Callable[[Job], None], title: str) -> Stage:
    """Build the stage of an evaluation, on which no other stage depends."""

    def depends(job: Job) -> Any:
        settings = job.settings.to_dict()["evaluate"]
        others = fingerprints(settings["beside"])
        return [
            settings["budget"],
            settings["baselines"],
            settings["beside"],
            others,
            settings[name],
            _data(job),
        ]

    return Stage(name, ("stability",), work, depends, (evaluation_file(name),), title)


def _training(job: Job) -> Any:
    initial = job.settings.trainer.initial
    return [job.settings.to_dict()["train"], *([initial] if initial else [])]


def _pool(job: Job) -> None:
    pool(job, job.run / UNFINISHED / "pool" / _digest(job, _BY_NAME["pool"]))


def _report(job: Job) -> None:
    from saefast.report import write_report

    write_report(job.run)


STAGE_LIST = (
    Stage("harvest", (), harvest, _data, (), "activations"),
    Stage("train", ("harvest",), train, _training, ("run.json",), "train the SAEs"),
    Stage(
        "statistics",
        ("train",),
        statistics,
        _counted,
        (FEATURES,),
        "statistics of the features",
    ),
    Stage(
        "match",
        ("statistics",),
        match,
        _match,
        (OVERLAP,),
        "match all pairs",
    ),
    Stage(
        "stability",
        ("match",),
        stability,
        _part("stability"),
        (STABILITY, MEMBERSHIP),
        "which features recur",
    ),
    Stage(
        "subspace",
        ("stability",),
        subspace,
        _part("subspace"),
        (SUBSPACES,),
        "subspaces of groups of features",
    ),
    Stage(
        "pool",
        ("stability",),
        _pool,
        _part("pool"),
        (POOLING, POOLED),
        "one SAE from all, and its controls",
    ),
    Stage(
        "evaluate",
        ("stability",),
        evaluate,
        _worth,
        (EVALUATION,),
        "contributions of groups of features",
    ),
    _evaluation("probe", probe.probe, "how well single latents predict labels"),
    _evaluation("explain", explain.explain, "explanations of latents"),
    _evaluation("steer", steer.steer, "whether generated text shows an amplified latent"),
    _evaluation("edit", edit.edit, "whether facts can be changed one at a time"),
    _evaluation("absorb", absorb.absorb, "absorption of latents by others"),
    Stage(
        "report",
        ("subspace", "pool", "evaluate"),
        _report,
        lambda job: None,
        (REPORT,),
        "the report",
    ),
)
NAMES = tuple(stage.name for stage in STAGE_LIST)
_BY_NAME = {stage.name: stage for stage in STAGE_LIST}
EVALUATIONS: dict[str, Measure] = {
    "probe": probe.measure,
    "explain": explain.measure,
    "steer": steer.measure,
    "edit": edit.measure,
    "absorb": absorb.measure,
}
"""Evaluations by name"""


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
        if name not in _BY_NAME:
            raise ValueError(f"until must be one of {', '.join(NAMES)}, got {name!r}")
    run = Path(out)
    for name in (SETTINGS, RUN):
        refuse_existing(run / name, resume)
    job = Job(run, settings, progress)
    wanted = {each for name in last for each in _needed(name)}
    for name in last:
        check_run(job, name)
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
        if not skipped:
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
    job.run.mkdir(parents=True, exist_ok=True)
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
            open_activations(str(path))


def _needed(name: str) -> set[str]:
    found = {name}
    for need in _BY_NAME[name].needs:
        found |= _needed(need)
    return found


def _files(job: Job, stage: Stage) -> tuple[str, ...]:
    """Return the files of a stage that exist with the settings of a run once it is finished."""
    left_out = () if can_pool(job.settings) else (POOLED,)
    return tuple(name for name in stage.files if name not in left_out)


def _digest(job: Job, stage: Stage) -> str:
    """Return a hash of the settings of a stage and of the stages on which it depends."""
    before = [_digest(job, _BY_NAME[need]) for need in stage.needs]
    text = json.dumps([stage.name, stage.depends(job), before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _records(job: Job) -> dict[str, StageRecord]:
    """Return the records of finished stages."""
    return read_record(job.run / STAGES, dict[str, StageRecord]) or {}


def is_finished(job: Job, name: str) -> bool:
    """Return whether the files of a stage exist and match the settings."""
    stage = _BY_NAME[name]
    record = _records(job).get(name)
    there = all((job.run / file).exists() for file in _files(job, stage))
    return record is not None and there and record.digest == _digest(job, stage)


def finish_stage(job: Job, name: str, seconds: float) -> None:
    """Record that a stage is finished.

    Records of later stages are removed, since they were computed from the replaced result.
    """
    records = _records(job)
    for other in NAMES:
        # The report shows every stage.
        if other in (name, "report") or name in _needed(other):
            records.pop(other, None)
    records[name] = StageRecord(_digest(job, _BY_NAME[name]), round(seconds, 1))
    write_record(job.run / STAGES, records)
    shutil.rmtree(job.run / UNFINISHED / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is missing, or holds other stages' folders
        (job.run / UNFINISHED).rmdir()
