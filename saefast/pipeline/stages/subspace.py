"""Stage subspace: the subspaces that groups of features span, and their contributions to tokens."""

import torch
from torch import Tensor

from saefast.activations.covariance import activation_covariance
from saefast.disk.tables import write_json, write_table
from saefast.evaluation.contributions import contribution_r2
from saefast.pipeline.job import Job
from saefast.run_folder import CONTRIBUTIONS, SKIPPED, SUBSPACE_TABLES, SUBSPACES
from saefast.subspace.fit import fit_subspaces
from saefast.train.initial import Sample, Scales, begin


def subspace(job: Job) -> None:
    """Compare the subspaces and the contributions of stable and unstable features with nulls."""
    how = job.settings.subspace
    covariance = None
    if job.knows_rows:
        covariance = activation_covariance(str(job.train_rows), progress=job.progress)
    found = fit_subspaces(
        job.dictionaries,
        job.stability,
        stable=job.settings.stability.stable,
        unstable=job.settings.stability.unstable,
        rank=how.rank,
        covariance=covariance,
        initial=_untrained(job),
        draws=how.draws,
        seed=how.seed,
        progress=job.progress,
    )
    for name in SUBSPACE_TABLES:
        write_table(job.run / SUBSPACES / f"{name}.parquet", found.to_table(name))
    if not job.knows_rows:
        lacking = "contributions of groups, since the run does not record its activations"
        write_json(job.run / SUBSPACES / SKIPPED, [*found.skipped, lacking])
        return
    added = contribution_r2(
        job.saes,
        str(job.held_out_rows),
        job.stability,
        stable=job.settings.stability.stable,
        unstable=job.settings.stability.unstable,
        mass=job.column("mass"),
        draws=how.draws,
        seed=how.seed,
        progress=job.progress,
    )
    write_table(job.run / SUBSPACES / CONTRIBUTIONS, added.to_table())
    write_json(job.run / SUBSPACES / SKIPPED, [*found.skipped, *added.skipped])


def _untrained(job: Job) -> list[Tensor] | None:
    """Return the initial decoders of the training; None if they depend on the first rows."""
    config, given = job.settings.train, job.initial
    if given is not None:
        return [sae.W_dec.detach() for sae in given]
    if config.directions != "iso":
        return None
    row = Sample(torch.ones(1, job.saes[0].d), None)
    return [begin(config, seed, row, Scales(1.0, 1.0)).W_dec.detach() for seed in job.seeds]
