"""Stage stability: the score of every feature, and in how many SAEs features are."""

from typing import Any

from saefast.disk.tables import write_json
from saefast.pipeline.job import Job
from saefast.run_folder import MEMBERSHIP, STABILITY
from saefast.stability.membership import fit_power_law, membership_counts, subset_curve
from saefast.stability.result import Stability
from saefast.stability.score import stability_curve


def stability(job: Job) -> None:
    """The score of every feature, and what all of them make up."""
    found, rule = job.stability, job.settings.stability
    groups = job.groups
    names = []
    for masks, alive in zip(groups, found.alive, strict=True):
        kinds = alive.long() + masks["stable"].long() + 2 * masks["unstable"].long()
        names.append([("dead", "mixed", "stable", "unstable")[kind] for kind in kinds.tolist()])
    columns = ("alive", "score", "support", "low", "high", "soft", "similarity", "partner")
    job.add_features({"group": names, **{name: getattr(found, name) for name in columns}})
    curve = stability_curve(found, stable=rule.stable, unstable=rule.unstable)
    write_json(
        job.run / STABILITY,
        {
            "rule": vars(found.rule),
            "stable_cut": rule.stable,
            "unstable_cut": rule.unstable,
            "least_rate": rule.least_rate,
            "thresholds": found.thresholds.tolist(),
            "chance": found.chance.tolist(),
            "mean": found.mean(),
            "seeds": [
                {
                    "seed": seed,
                    "alive": int(alive.sum()),
                    "dead": dead,
                    **{name: int(mask.sum()) for name, mask in masks.items()},
                }
                for seed, alive, dead, masks in zip(
                    job.seeds, found.alive, found.dead, groups, strict=True
                )
            ],
            "curve": [vars(point) for point in curve],
        },
    )
    write_json(job.run / MEMBERSHIP, _membership(found))


def _membership(found: Stability) -> dict[str, Any]:
    """In how many SAEs features are, and how that goes on."""
    told: dict[str, Any] = {"counts": membership_counts(found).tolist()}
    curve = subset_curve(found)
    told["curve"] = [vars(point) for point in curve]
    if len(curve) > 3:  # three points are met by any power law
        law = fit_power_law([p.dictionaries for p in curve], [p.alone for p in curve])
        told["power_law"] = vars(law)
    return told
