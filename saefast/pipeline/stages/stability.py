"""Stage stability: the stability score of every feature, and the number of SAEs that share it."""

from saefast.pipeline.job import Job
from saefast.run_folder import MEMBERSHIP, STABILITY
from saefast.run_records import MembershipRecord, SeedStability, StabilityRecord, write_record
from saefast.stability.membership import fit_power_law, membership_counts, subset_curve
from saefast.stability.result import Stability
from saefast.stability.score import stability_curve


def stability(job: Job) -> None:
    """Score the stability of every feature, and summarise it over SAEs and subsets of SAEs."""
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
    """Return the numbers of features by the number of SAEs that share them, and their curve."""
    curve, law = subset_curve(found), None
    if len(curve) > 3:  # a power law fits any three points
        law = fit_power_law([p.dictionaries for p in curve], [p.alone for p in curve])
    return MembershipRecord(membership_counts(found).tolist(), curve, law)
