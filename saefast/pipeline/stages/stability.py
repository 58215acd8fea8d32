"""Stage stability: the score of every feature, and in how many SAEs features are."""

from saefast.pipeline.job import Job
from saefast.run_folder import MEMBERSHIP, STABILITY
from saefast.run_records import MembershipRecord, SeedStability, StabilityRecord, write_record
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
    record = StabilityRecord(
        rule=found.rule,
        stable_cut=rule.stable,
        unstable_cut=rule.unstable,
        least_rate=rule.least_rate,
        thresholds=found.thresholds.tolist(),
        chance=found.chance.tolist(),
        mean=found.mean(),
        seeds=[
            SeedStability(
                seed,
                int(alive.sum()),
                dead,
                int(masks["stable"].sum()),
                int(masks["unstable"].sum()),
            )
            for seed, alive, dead, masks in zip(
                job.seeds, found.alive, found.dead, groups, strict=True
            )
        ],
        curve=curve,
    )
    write_record(job.run / STABILITY, record)
    write_record(job.run / MEMBERSHIP, _membership(found))


def _membership(found: Stability) -> MembershipRecord:
    """Return in how many SAEs features are, and how that goes on."""
    curve, law = subset_curve(found), None
    if len(curve) > 3:  # three points are met by any power law
        law = fit_power_law([p.dictionaries for p in curve], [p.alone for p in curve])
    return MembershipRecord(membership_counts(found).tolist(), curve, law)
