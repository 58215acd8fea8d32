"""Subjects of evaluations: a model with SAEs, groups, held-out rows and rivals."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.one_pass import OnePass
from saefast.evaluation.conditions import (
    COORDINATES,
    PERMUTED_DECODER,
    TRAINABLE,
    UNTRAINED,
    Condition,
    rival_conditions,
    train_baselines,
)
from saefast.evaluation.statistics import feature_statistics
from saefast.match.all_pairs import match_all
from saefast.match.result import Matches
from saefast.pipeline.beside import conditions_beside
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings, HarvestSettings
from saefast.pipeline.settings_file import source_table
from saefast.run_folder import EVALUATIONS
from saefast.sae import SAE, UP_TO_SIGN
from saefast.stability.result import Stability
from saefast.stability.score import score_stability
from saefast.storage import load_dictionaries, load_sae

if TYPE_CHECKING:
    from saefast.lm import LanguageModel

_CALIBRATION_ROWS = 4096
_HELD_OUT = "held-out"
_BASELINES = "baselines"
HELD_OUT_TOKENS = 20_000
"""Number of held-out tokens to read for SAEs that belong to no run"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """SAEs to evaluate, with all inputs of evaluations."""

    model: "LanguageModel"
    site: int | str
    saes: list[SAE]
    stability: Stability | None
    """stability of the SAEs; None for a single one"""
    matches: Mapping[tuple[int, int], Matches] | None
    """matches between every two SAEs"""
    groups: list[dict[str, Tensor]] | None
    """for each SAE its stable and unstable latents, {name: [m] bool}"""
    mass: list[Tensor]
    """for each SAE [m] the activation mass of its latents"""
    train: Path | None
    """activations to calibrate rivals on; None: the held-out ones"""
    held_out: Path
    """store of held-out activations with their tokens"""
    rivals: tuple[str, ...] = UNTRAINED
    """names of conditions that need no training, see `rival_conditions`"""
    baselines: tuple[Condition, ...] = ()
    """trained baselines"""
    beside: tuple[Condition, ...] = ()
    """SAEs of other runs or folders, named after them"""
    out: Path
    """folder of the results"""
    progress: bool = True

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Rivals without training, then the trained baselines, then SAEs of other runs."""
        source = str(self.train or self.held_out)
        first = next(iter(OnePass(source, batch_size=_CALIBRATION_ROWS, progress=False)))
        rivals = rival_conditions(self.saes, first.x.float(), self.rivals)
        return (*rivals, *self.baselines, *self.beside)

    @property
    def sparse_conditions(self) -> tuple[Condition, ...]:
        """Conditions whose latents fire on some rows only; others cannot be explained."""
        return tuple(each for each in self.conditions if each.name not in COORDINATES)

    def first(self, number: int) -> "Subject":
        """Return a subject of the first SAEs of each condition, without stability and matches."""

        def cut(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
            return tuple(replace(each, saes=each.saes[:number]) for each in conditions)

        return replace(
            self,
            saes=self.saes[:number],
            stability=None,
            matches=None,
            groups=None if self.groups is None else self.groups[:number],
            mass=self.mass[:number],
            baselines=cut(self.baselines),
            beside=cut(self.beside),
        )


def subject_of_run(job: Job, how: EvaluateSettings) -> Subject:
    """Build the subject of a run's own model, SAEs, groups and rows; train missing baselines."""
    data = job.settings.data
    if not isinstance(data, HarvestSettings):
        raise ValueError(
            f"{job.run} does not record the language model of its activations, which this "
            f"evaluation needs; start a run with [harvest], or give the SAEs and the model: "
            f"saefast evaluate SAE SAE --model NAME --site SITE"
        )
    out = job.run / EVALUATIONS
    for name in how.baselines:
        checks.one_of("baselines", name, (*TRAINABLE, PERMUTED_DECODER))
    trained = [name for name in how.baselines if name in TRAINABLE]
    untrained = [name for name in how.baselines if name not in TRAINABLE]
    return Subject(
        model=job.language_model,
        site=data.site,
        saes=job.saes,
        stability=job.stability,
        matches=job.matches("decoder"),
        groups=job.groups,
        mass=job.column("mass"),
        train=job.train_rows,
        held_out=job.held_out_rows,
        rivals=(*UNTRAINED, *untrained),
        baselines=_trained_baselines(job, trained, out / _BASELINES),
        beside=conditions_beside(how.beside, job.saes[0].d, (data.model, data.site)),
        out=out,
        progress=job.progress,
    )


def _trained_baselines(job: Job, names: Sequence[str], parent: Path) -> tuple[Condition, ...]:
    """Return the baselines of a run; missing ones are trained."""
    if not names:
        return ()
    trained = train_baselines(
        str(job.train_rows),
        job.settings.train,
        names,
        out=_folder_of_baselines(job, names, parent),
        resume=True,
        progress=job.progress,
    )
    return tuple(trained)


def _folder_of_baselines(job: Job, baselines: Sequence[str], parent: Path) -> Path:
    """Return the folder for given baselines; folders of other settings are removed."""
    harvest = source_table(job.settings)["harvest"]
    decisive = [job.settings.to_dict()["train"], harvest, list(baselines)]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    folder = parent / digest[:16]
    for other in parent.glob("*"):
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    return folder


def subject_of_saes(
    paths: Sequence[Path],
    model: str,
    site: int | str,
    out: Path,
    *,
    beside: Sequence[str | Path] = (),
    tokens: int = HELD_OUT_TOKENS,
    device: str = "cpu",
    progress: bool = True,
) -> Subject:
    """Build the subject of SAEs of any format; harvest held-out rows of the built-in corpus.

    Two or more SAEs are matched and scored, for groups of stable and unstable latents.

    Args:
        paths: files or folders of the SAEs.
        model: name of the model, as in `saefast.lm.load_model`.
        site: module whose activations the SAEs encode.
        out: folder of the results and of the harvested rows.
        beside: runs or folders of SAEs to evaluate in the same way.
        tokens: number of rows to harvest.
        device: device of the model: cpu, cuda or cuda:NUMBER.
        progress: show progress bars on stderr.

    Returns:
        The subject of the evaluations.
    """
    from saefast.lm import builtin_corpus, harvest, load_model

    saes = [load_sae(path) for path in paths]
    loaded = load_model(model, device=device, progress=progress)
    (held_out,) = harvest(
        loaded,
        site,
        out=out / _HELD_OUT,
        tokens=tokens,
        corpus=builtin_corpus().held_out(),
        dtype=torch.float32,
        resume=True,
        progress=progress,
    )
    statistics = feature_statistics(saes, str(held_out), progress=progress)
    stability = matches = None
    if len(saes) > 1:
        dictionaries = load_dictionaries(*paths, encoder=True)
        absolute = any(sae.variant in UP_TO_SIGN for sae in saes)
        matches = match_all(dictionaries, progress=progress, absolute=absolute)
        stability = score_stability(dictionaries, matches=matches, absolute=absolute)
    return Subject(
        model=loaded,
        site=site,
        saes=saes,
        stability=stability,
        matches=matches,
        groups=None if stability is None else stability.groups(),
        mass=[each.mass for each in statistics],
        train=None,
        held_out=held_out,
        beside=conditions_beside(beside, saes[0].d),
        out=out,
        progress=progress,
    )
