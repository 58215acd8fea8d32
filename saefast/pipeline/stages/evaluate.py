"""Stage evaluate: contributions of groups and of single features on held-out data."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast.evaluation.ablation import feature_function
from saefast.evaluation.regression import regress_effect
from saefast.nulls.draws import mass_matched
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings
from saefast.pipeline.stages.harvest import corpus_of
from saefast.run_folder import EVALUATION
from saefast.run_records import (
    EffectRecord,
    EstimateRecord,
    EvaluationRecord,
    PatchingRecord,
    RegressionRecord,
    SeedEvaluation,
    as_active,
    write_record,
)

if TYPE_CHECKING:
    from saefast.lm.patch import PatchEffect


def evaluate(job: Job) -> None:
    """Measure the contributions of groups and of single features on held-out rows."""
    how, rows = job.settings.evaluate, str(job.held_out_rows)
    mass = job.column("mass")
    found = feature_function(
        job.saes,
        rows,
        job.groups,
        mass=mass,
        draws=how.draws,
        progress=job.progress,
    )
    job.add_features({"effect": [each.lost_variance for each in found]})
    rates, means = job.column("firing_rate"), job.column("mean")
    unstable = torch.cat([masks["unstable"] for masks in job.groups])
    alive = torch.cat(list(job.stability.alive))
    effects = torch.cat([each.effect for each in found])
    try:
        inputs = (effects, unstable, torch.cat(rates), torch.cat(means))
        fitted = regress_effect(*(values[alive] for values in inputs))
        regression = RegressionRecord(**vars(fitted))
    except ValueError as error:
        regression = RegressionRecord(reason=str(error))
    record = EvaluationRecord(
        rows=found[0].rows,
        held_out=job.held_out_rows != job.train_rows,
        seeds=[
            SeedEvaluation(seed, each.explained_variance, each.summary())
            for seed, each in zip(job.seeds, found, strict=True)
        ],
        regression=regression,
        language_model=_patched(job, mass),
    )
    write_record(job.run / EVALUATION, record)


def _patched(job: Job, mass: list[Tensor]) -> PatchingRecord | None:
    """Measure CE and KL with reconstructions by the first SAE, whole and by groups of features."""
    how, data = job.settings.evaluate, job.settings.data
    if job.language_model is None or how.tokens == 0:
        return None
    from saefast.lm import evaluate_patched

    assert isinstance(data, HarvestSettings)
    masks: dict[str, Tensor] = {}
    for name, mask in job.groups[0].items():
        masks[name] = mask
        masks[as_active(name)] = mass_matched(mask, mass[0], 0, 0)
    found = evaluate_patched(
        job.language_model,
        data.site,
        job.saes[0],
        masks,
        corpus=corpus_of(data).held_out(),
        tokens=how.tokens,
        context=data.context,
        progress=job.progress,
    )

    def recorded(effect: "PatchEffect") -> EffectRecord:
        values = vars(effect).items()
        return EffectRecord(**{name: EstimateRecord(*value) for name, value in values})

    return PatchingRecord(
        seed=job.seeds[0],
        contexts=found.contexts,
        predictions=found.predictions,
        clean=recorded(found.clean),
        zero=recorded(found.zero),
        mean=recorded(found.mean),
        full=recorded(found.full),
        keep={name: recorded(effect) for name, effect in found.keep.items()},
        drop={name: recorded(effect) for name, effect in found.drop.items()},
    )
