"""Stages of a run: their inputs, the settings on which they depend, and their files."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from saefast.activations import open_activations
from saefast.pipeline.beside import fingerprints
from saefast.pipeline.evaluations import Measure
from saefast.pipeline.job import Job
from saefast.pipeline.settings import StoreSettings
from saefast.pipeline.settings_file import source_table
from saefast.pipeline.stages import absorb, edit, explain, probe, steer
from saefast.pipeline.stages.evaluate import evaluate
from saefast.pipeline.stages.harvest import harvest
from saefast.pipeline.stages.match import match
from saefast.pipeline.stages.pool import pool
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
    STABILITY,
    SUBSPACES,
    UNFINISHED,
    evaluation_file,
)


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


def digest(job: Job, stage: Stage) -> str:
    """Return a hash of the settings of a stage and of the stages on which it depends."""
    before = [digest(job, BY_NAME[need]) for need in stage.needs]
    text = json.dumps([stage.name, stage.depends(job), before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _data(job: Job) -> Any:
    source = source_table(job.settings)
    if isinstance(job.settings.data, StoreSettings):
        paths = (job.train_rows, job.held_out_rows)
        source["fingerprints"] = [fingerprint_of_rows(path) for path in paths]
    return source


def fingerprint_of_rows(path: Path) -> str:
    """Return the fingerprint of activations on disk, which are opened for it.

    Stages ask for it many times, so a file that stays the same is read once.
    """
    if not path.is_file():
        return open_activations(str(path)).fingerprint
    facts = path.stat()
    return _of_file(str(path.resolve()), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _of_file(path: str, *_state: int) -> str:
    return open_activations(path).fingerprint


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
    pool(job, job.run / UNFINISHED / "pool" / digest(job, BY_NAME["pool"]))


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
"""Names of the stages, in their order in a run"""
BY_NAME = {stage.name: stage for stage in STAGE_LIST}
EVALUATIONS: dict[str, Measure] = {
    "probe": probe.measure,
    "explain": explain.measure,
    "steer": steer.measure,
    "edit": edit.measure,
    "absorb": absorb.measure,
}
"""Functions that measure an SAE outside of a run, by the name of the evaluation"""
