"""Stage pool: one SAE from the features of all, compared with its controls."""

import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from saefast.dictionary import Dictionary, sae_from
from saefast.disk.atomic import move
from saefast.pipeline.job import Job
from saefast.pipeline.settings import RunSettings
from saefast.pool.features import pool_features
from saefast.pool.study import evaluate_pooling
from saefast.run_folder import POOLED, POOLING
from saefast.run_records import MethodRecord, PoolingRecord, write_record
from saefast.storage import load_sae, save_sae
from saefast.train.config import TrainConfig
from saefast.train.train import train_saes

_NOT_GATED = "pooled dictionaries do not hold the magnitude parameters of gated SAEs"


def pool(job: Job, unfinished: Path) -> None:
    """Pool the features of all SAEs into one, and compare pools with their controls.

    Trainings resume from the folder `unfinished`, which must not be used for anything else.
    """
    how, config, rows = job.settings.pool, job.settings.train, str(job.train_rows)
    if not can_pool(job.settings):
        shutil.rmtree(job.run / POOLED, ignore_errors=True)
        write_record(job.run / POOLING, PoolingRecord(0, 0, 0, _NOT_GATED))
        return
    tokens = how.tokens or max(config.tokens // 4, 1)
    fine_tune = replace(config, tokens=tokens, seeds=config.seeds[:1])
    most = how.width or config.latents
    everywhere = pool_features(job.dictionaries, job.stability, progress=job.progress)
    width = min(most, everywhere.m)
    pooled = sae_from(
        _first(everywhere, width),
        k=min(config.k, width),
        variant=config.variant,
        by_norm=config.by_norm,
    )
    (tuned,) = train_saes(
        rows,
        replace(fine_tune, latents=width, k=min(config.k, width)),
        initial=[pooled],
        out=unfinished / "whole",
        resume=True,
        keep_training=False,
        progress=job.progress,
        device=job.settings.trainer.device,
        checkpoint_minutes=job.settings.trainer.checkpoint_minutes,
    )
    # Remains of an interrupted write are in a folder that is removed when the stage is finished.
    written = save_sae(tuned, unfinished / POOLED)
    shutil.rmtree(job.run / POOLED, ignore_errors=True)
    move(written, job.run / POOLED)
    record = PoolingRecord(width, everywhere.m, tokens)
    write_record(job.run / POOLING, _compared(record, job, most, fine_tune, unfinished))


def can_pool(settings: RunSettings) -> bool:
    """Return whether the SAEs of a run can be pooled into one."""
    return settings.train.variant != "gated"


def _compared(
    record: PoolingRecord, job: Job, most: int, fine_tune: TrainConfig, unfinished: Path
) -> PoolingRecord:
    """Compare pools of both halves of the seeds with their controls."""
    how, half = job.settings.pool, len(job.seeds) // 2
    if not how.compare:
        return replace(record, reason="the comparison was not requested")
    if half < 2:
        return replace(record, reason="pools of two halves need at least four seeds")
    pools = []
    for first in (0, half):
        places = range(first, first + half)
        unique = pool_features(
            [job.dictionaries[place] for place in places],
            job.stability_among(places),
            progress=job.progress,
        )
        pools.append(unique)
    width = min(most, *(each.m for each in pools))
    saes = [load_sae(folder) for folder in job.folders]
    for sae in saes:
        sae.by_norm = job.settings.train.by_norm  # files have unit rows, for which it is the same
    study = evaluate_pooling(
        [saes[:half], saes[half : 2 * half]],
        [_first(each, width) for each in pools],
        str(job.train_rows),
        str(job.held_out_rows),
        fine_tune=fine_tune,
        scratch=job.settings.train,
        scratch_tokens=how.scratch_tokens,
        margin=how.margin,
        out=unfinished / "compared",
        resume=True,
        progress=job.progress,
        device=job.settings.trainer.device,
    )
    return replace(
        record,
        groups=[list(job.seeds[:half]), list(job.seeds[half : 2 * half])],
        methods=[MethodRecord(**row) for row in study.to_table().to_pylist()],
        beaten=study.beaten,
        verdict=study.verdict,
        margin=study.margin,
    )


def _first(pool: Dictionary, width: int) -> Dictionary:
    """Return the pool restricted to its first features."""

    def cut(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[:width]

    return replace(
        pool,
        W_dec=pool.W_dec[:width],
        W_enc=cut(pool.W_enc),
        b_enc=cut(pool.b_enc),
        firing_rate=cut(pool.firing_rate),
    )
