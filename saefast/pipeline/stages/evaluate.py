"""Stage evaluate: what groups of features, and single ones, are worth on held-out data."""

from typing import Any

import torch
from torch import Tensor

from saefast.disk.tables import write_json
from saefast.evaluation.ablation import feature_function
from saefast.evaluation.regression import regress_effect
from saefast.nulls.draws import mass_matched
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings
from saefast.pipeline.stages.harvest import corpus_of
from saefast.run_folder import EVALUATION


def evaluate(job: Job) -> None:
    """What the groups, and single features, are worth on held-out rows."""
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
        regression = vars(regress_effect(*(values[alive] for values in inputs)))
    except ValueError as error:
        regression = {"reason": str(error)}
    write_json(
        job.run / EVALUATION,
        {
            "rows": found[0].rows,
            "held_out": job.held_out_rows != job.train_rows,
            "seeds": [
                {
                    "seed": seed,
                    "explained_variance": each.explained_variance,
                    "groups": [vars(line) for line in each.summary()],
                }
                for seed, each in zip(job.seeds, found, strict=True)
            ],
            "regression": regression,
            "language_model": _patched(job, mass),
        },
    )


def _patched(job: Job, mass: list[Tensor]) -> dict[str, Any] | None:
    """CE and KL with reconstructions of the first SAE, all of it and groups of features."""
    how, data = job.settings.evaluate, job.settings.data
    if job.language_model is None or how.tokens == 0:
        return None
    from saefast.lm import evaluate_patched

    assert isinstance(data, HarvestSettings)
    masks: dict[str, Tensor] = {}
    for name, mask in job.groups[0].items():
        masks[name] = mask
        masks[f"{name}:mass"] = mass_matched(mask, mass[0], 0, 0)
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

    def told(effect: Any) -> dict[str, Any]:
        return {name: value._asdict() for name, value in vars(effect).items()}

    return {
        "seed": job.seeds[0],
        "contexts": found.contexts,
        "predictions": found.predictions,
        **{name: told(getattr(found, name)) for name in ("clean", "zero", "mean", "full")},
        "keep": {name: told(effect) for name, effect in found.keep.items()},
        "drop": {name: told(effect) for name, effect in found.drop.items()},
    }
